"""
All that only a GPU can show, part by part; on_gpu.sh runs it.

    python benchmarks/on_gpu.py [--minutes 9] [--parts tests,steps] [--out_dir benchmarks/results/gpu]

Parts are in the order of what they are worth, each with a limit of its own, and the results are written anew after
each, so a run that is cut tells something. ``results.json`` has what each part has printed and measured, and
``results.md`` the table.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import fire
from run import table_rows

HERE = Path(__file__).parent
RUN = (sys.executable, "-m", "monai.bundle", "run")


@dataclass(frozen=True)
class Part:
    """
    One thing to be shown.

    Args:
        command: what is run, from the repository's root.
        limit_s: seconds after which it is ended.
        needs_gpu: whether it says nothing elsewhere.
    """

    command: tuple[str, ...]
    limit_s: float
    needs_gpu: bool = False


@dataclass
class Outcome:
    """
    What became of a part.

    Args:
        ended: ``ok``, ``failed``, ``cut`` for one that took too long, or ``left out``.
        seconds: how long it took.
        figures: the rows of the table that it has printed.
        tail: the end of what it has printed.
    """

    ended: str
    seconds: float = 0.0
    figures: dict[str, str] = field(default_factory=dict)
    tail: str = ""


def parts_in(folder: str) -> dict[str, Part]:
    """All parts by name; outputs of trainings go to the folder."""
    train = str(HERE.parent / "bundle" / "configs" / "train.json")
    evaluate = str(HERE.parent / "bundle" / "configs" / "evaluate.json")
    output = ("--output_dir", folder)
    steps = (sys.executable, str(HERE / "gpu_steps.py"))
    return {
        "tests": Part((sys.executable, "-m", "pytest", "-q", "-m", "gpu"), 90, needs_gpu=True),
        "training": Part((*RUN, "training", "--config_file", train, *output), 100),
        "evaluating": Part((*RUN, "evaluating", "--config_file", f"['{train}','{evaluate}']", *output), 60),
        "steps": Part(steps, 100),
        "compiled steps": Part((*steps, "--compiled"), 90),
        "steps with transforms on the CPU": Part((*steps, "--on_cpu", "--steps", "100"), 60),
        "step against two networks": Part(
            (sys.executable, str(HERE / "step_cost.py"), "--peers", "--repetitions", "20"), 60
        ),
        "inference": Part((sys.executable, str(HERE / "inference.py"), "--repetitions", "3"), 120),
    }


def main(
    minutes: float = 9.0, parts: str | tuple[str, ...] | None = None, out_dir: str | Path = HERE / "results" / "gpu"
) -> None:
    """
    Runs the parts and prints a line for each.

    Args:
        minutes: time for all of them; what does not fit is left out.
        parts: names of the parts to run; all if not given.
        out_dir: folder of the results.

    Raises:
        ValueError: When there is no such part.
    """
    started = time.monotonic()
    outcomes: dict[str, Outcome] = {}
    machine = _machine()
    with tempfile.TemporaryDirectory() as folder:
        every = parts_in(folder)
        chosen = list(every) if parts is None else [parts] if isinstance(parts, str) else list(parts)
        if unknown := [name for name in chosen if name not in every]:
            raise ValueError(f"parts must be some of {', '.join(every)}, got {', '.join(unknown)}.")
        for name in chosen:
            left = 60 * minutes - (time.monotonic() - started)
            outcomes[name] = outcome = _outcome(every[name], left, has_gpu=machine["gpu"] is not None)
            print(f"{name}: {outcome.ended} after {outcome.seconds:.0f} s", flush=True)
            if outcome.ended in ("failed", "cut"):
                print(outcome.tail, flush=True)
            _write(Path(out_dir), machine, outcomes)
    print((Path(out_dir) / "results.md").read_text())


def _outcome(part: Part, left_s: float, has_gpu: bool) -> Outcome:
    if left_s <= 0 or (part.needs_gpu and not has_gpu):
        return Outcome("left out")
    started = time.monotonic()
    # A session of its own, so that what it has started ends with it.
    process = subprocess.Popen(
        part.command,
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=min(part.limit_s, left_s))
        ended = "ok" if process.returncode == 0 else "failed"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        printed, _ = process.communicate()
        ended = "cut"
    table = [line for line in printed.splitlines() if line.startswith("|")]
    figures = dict(table_rows("\n".join(table))) if len(table) > 2 else {}
    return Outcome(ended, round(time.monotonic() - started, 1), figures, printed[-4000:])


def _machine() -> dict[str, Any]:
    import monai
    import torch

    has_gpu = torch.cuda.is_available()
    return {
        "gpu": torch.cuda.get_device_name() if has_gpu else None,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "monai": monai.__version__,
    }


def _write(folder: Path, machine: dict[str, Any], outcomes: dict[str, Outcome]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "parts": {name: asdict(outcome) for name, outcome in outcomes.items()}}
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    about = ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None)
    lines = [f"`benchmarks/on_gpu.sh` on {about}:", "", "| part | ended | seconds | figures |", "|---|---|---|---|"]
    for name, outcome in outcomes.items():
        figures = "; ".join(f"{row}: {values}" for row, values in outcome.figures.items())
        lines.append(f"| {name} | {outcome.ended} | {outcome.seconds:.0f} | {figures} |")
    (folder / "results.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    fire.Fire(main)
