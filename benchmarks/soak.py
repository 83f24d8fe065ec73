"""
Whether a long training holds on to memory or files.

    python benchmarks/soak.py --minutes 60

Trains on the phantom with every part switched on, mixed patches and distillation from the first step, validation,
checkpoints and TensorBoard events, and notes memory and open files of the process every few seconds. Networks and
patches are small, so that an hour has as many steps, epochs and files as days of a large one. It writes ``soak.csv``,
``soak.png`` and ``result.json``, and ends with exit code 1 where memory or open files have grown after the warm-up.
Linux only: it reads ``/proc``.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import fire
from bundle_workflow import ROOT, open_workflow

SETTINGS = {
    "patch_size": [32, 32, 16],
    "network_def#n_filters": 8,
    # More than an hour has; the curriculum stands still at its beginning.
    "epochs": 1_000_000,
    "warm_up": 0.0,
    "ramp_up": 0.0,
    "teacher_weights": "none",
}
WARM_UP = 0.2
"""Part of the run in which caches, donors and allocators fill."""
TOLERANCE = 0.02
"""Part by which memory may differ between the first and the last quarter of what follows."""


def main(
    minutes: float = 60, out_dir: str = str(ROOT / "benchmarks" / "results" / "soak"), every_s: float = 10
) -> None:
    """Trains for some minutes, and says what it held on to."""
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(folder)
        samples = _soak(trainer, 60 * minutes, every_s, out / "soak.csv")
    verdict = _verdict(samples)
    verdict.update(steps=trainer.state.iteration, epochs=trainer.state.epoch, minutes=round(samples[-1]["minutes"], 1))
    (out / "result.json").write_text(json.dumps(verdict, indent=1) + "\n")
    _draw(samples, out / "soak.png")
    print(json.dumps(verdict, indent=1))
    sys.exit(0 if verdict["flat"] else 1)


def _trainer(folder: str) -> Any:
    workflow = open_workflow("train", output_dir=folder, **{"datalist#phantom_dir": f"{folder}/phantom", **SETTINGS})
    return workflow.parser.get_parsed_content("train#trainer")


def _soak(trainer: Any, seconds: float, every_s: float, file: Path) -> list[dict[str, float]]:
    """Trains for some seconds, and takes samples beside it, in a thread of its own."""
    from ignite.engine import Events

    samples: list[dict[str, float]] = []
    is_over = threading.Event()
    start = time.monotonic()

    def sample() -> None:
        with file.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, ["minutes", "step", "memory_mb", "open_files"])
            writer.writeheader()
            while not is_over.wait(every_s):
                row = {"minutes": (time.monotonic() - start) / 60, "step": trainer.state.iteration, **_held()}
                samples.append(row)
                writer.writerow({name: round(value, 2) for name, value in row.items()})
                handle.flush()

    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: engine.terminate() if time.monotonic() - start > seconds else None
    )
    thread = threading.Thread(target=sample)
    thread.start()
    try:
        trainer.run()
    finally:
        is_over.set()
        thread.join()
    return samples


def _held() -> dict[str, float]:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return {"memory_mb": pages * os.sysconf("SC_PAGE_SIZE") / 1e6, "open_files": len(os.listdir("/proc/self/fd"))}


def _verdict(samples: list[dict[str, float]]) -> dict[str, Any]:
    settled = [row for row in samples if row["minutes"] > WARM_UP * samples[-1]["minutes"]]
    quarter = len(settled) // 4
    verdict: dict[str, Any] = {"samples": len(samples)}
    for name, allowed in (("memory_mb", TOLERANCE), ("open_files", 0.0)):
        # Medians, because a checkpoint holds memory and a file for a moment.
        first, last = (statistics.median(row[name] for row in part) for part in (settled[:quarter], settled[-quarter:]))
        verdict[name] = {
            "first_quarter": round(first, 1),
            "last_quarter": round(last, 1),
            "most": round(max(row[name] for row in settled), 1),
            "flat": last <= first * (1 + allowed),
        }
    return {"flat": all(verdict[name]["flat"] for name in ("memory_mb", "open_files")), **verdict}


def _draw(samples: list[dict[str, float]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    minutes = [row["minutes"] for row in samples]
    for axes, name, title in zip(
        figure.subplots(2, sharex=True), ("memory_mb", "open_files"), ("resident memory, MB", "open files")
    ):
        axes.plot(minutes, [row[name] for row in samples], linewidth=0.8)
        axes.axvspan(0, WARM_UP * minutes[-1], color="0.9")
        axes.set_ylim(bottom=0)
        axes.set_ylabel(title)
    axes.set_xlabel("minutes of training, warm-up shaded")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    fire.Fire(main)
