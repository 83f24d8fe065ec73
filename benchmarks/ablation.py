"""
The table of the README: every arm of ``bundle/configs/ablation`` for the same wall time, scored on the test cases.

    python benchmarks/ablation.py --minutes 8 --seeds 0,1,2
    python benchmarks/ablation.py --minutes 4 --dataset_dir DIR --overlay acdc --arms supervised,ema,cutmix,pic

Each arm first runs a few epochs by itself on all cores, which tell how many of them fit into the time beside what comes
before them (caching the volumes and, for DINO-Mix, computing the token atlas from nothing); with ``--jobs``
the runs are then made side by side with their share of the cores, which gives the same steps sooner. Runs that are
already in the output folder are not repeated. Settings are those of the bundle; test cases are scored once, after
training.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fire

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundle" / "configs"
ARMS = {
    "supervised": "supervised, labeled cases alone",
    "ema": "+ EMA pseudo-labels",
    "cutmix": "+ plain CutMix",
    "pic": "+ PIC",
    "fkd_untrained": "DINO-Mix, FKD with an untrained teacher",
    "fkd_content": "DINO-Mix, FKD with a content-coding teacher (bound)",
    "all_labels": "supervised, all labels (bound)",
}
SMALLEST = 5


def main(
    minutes: float = 8.0,
    seeds: int | tuple[int, ...] = (0, 1, 2),
    arms: str | tuple[str, ...] = tuple(ARMS),
    dataset_dir: str | None = None,
    overlay: str | None = None,
    output_dir: str = "benchmarks/results",
    jobs: int = 1,
) -> None:
    """Runs what is missing and prints the table."""
    arms = arms.split(",") if isinstance(arms, str) else list(arms)
    seeds = [seeds] if isinstance(seeds, int) else list(seeds)
    folder = Path(output_dir) / (overlay or "phantom") / f"{minutes:g}min"
    common: dict[str, Any] = {"overlay": overlay, "dataset_dir": dataset_dir}
    epochs = {arm: _calibrated_epochs(folder / arm, arm, minutes, common) for arm in arms}
    threads = max(1, (os.cpu_count() or 1) // jobs)

    def run(seed: int, arm: str) -> None:
        result = folder / arm / str(seed) / "result.json"
        if not result.is_file():
            settings = {"arm": arm, "seed": seed, "epochs": epochs[arm], "output_dir": result.parent, **common}
            _in_a_process("train", threads, **settings)
        print(_table(folder), flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        for finished in [pool.submit(run, seed, arm) for seed in seeds for arm in arms]:
            finished.result()


def train(
    arm: str, seed: int, epochs: int, output_dir: str, overlay: str | None = None, dataset_dir: str | None = None
) -> None:
    """Trains one arm, scores it on the test cases, and writes ``result.json``."""
    folder = Path(output_dir)
    settings = {"seed": seed, "epochs": epochs, "val_interval": max(1, epochs // 8)}
    # What the teacher says of the volumes is the same in every run.
    workflow = _workflow(arm, folder, overlay, dataset_dir, atlas_dir=str(folder.parents[1] / "atlas"), **settings)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    start = time.perf_counter()
    trainer.run()
    wall = time.perf_counter() - start
    _workflow(arm, folder, overlay, dataset_dir, "evaluate", report_dir=str(folder / "test"), **settings).run()
    voxels = workflow.parser.get_parsed_content("datalist").training_voxels[1:]
    with (folder / "test" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    dice: dict[str, list[float]] = {}
    for row in rows:
        if row["dice"]:
            dice.setdefault(row["class"], []).append(float(row["dice"]))
    result = {
        **settings, "wall_s": wall, "steps": trainer.state.iteration,
        "dice": {name: statistics.mean(values) for name, values in dice.items()},
        "voxels": dict(zip(workflow.parser.get_parsed_content("class_names")[1:], voxels)),
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def pilot(arm: str, output_dir: str, overlay: str | None = None, dataset_dir: str | None = None) -> None:
    """Times the preparation, epochs with and without unlabeled patches, and a validation; writes ``pilot.json``."""
    from ignite.engine import Events

    epochs = 8
    settings = {"epochs": epochs, "val_interval": epochs, "warm_up": 0.375}
    shutil.rmtree(Path(output_dir) / "pilot", ignore_errors=True)
    workflow = _workflow(arm, Path(output_dir) / "pilot", overlay, dataset_dir, **settings)
    start = time.perf_counter()
    for name in ("train#dataset", "train#unlabeled_dataset"):
        workflow.parser.get_parsed_content(name)
    preparation = time.perf_counter() - start
    trainer = workflow.parser.get_parsed_content("train#trainer")
    validator = workflow.parser.get_parsed_content("validate#evaluator")
    times: dict[str, list[float]] = {"start": [], "end": [], "validation": []}
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: times["start"].append(time.perf_counter()))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: times["end"].append(time.perf_counter()))
    for event in (Events.STARTED, Events.COMPLETED):
        validator.add_event_handler(event, lambda: times["validation"].append(time.perf_counter()))
    trainer.run()
    lengths = [end - start for start, end in zip(times["start"], times["end"])]
    validation = times["validation"][1] - times["validation"][0]
    # The first epoch fills caches, the fourth begins to use unlabeled patches, and the last one validates. The fastest
    # of the others is what an epoch costs when nothing else runs.
    timing = {
        "preparation_s": preparation,
        "warm_up_epoch_s": min(lengths[1:3]),
        "epoch_s": min(lengths[4:7]),
        "validation_s": validation,
    }
    (Path(output_dir) / "pilot.json").write_text(json.dumps(timing, indent=1) + "\n")


def _workflow(
    arm: str, output_dir: Path, overlay: str | None, dataset_dir: str | None, *patches: str, **settings: Any
) -> Any:
    # Imported here: the process that only starts others needs none of it.
    from monai.bundle import ConfigWorkflow

    sys.path.insert(0, str(ROOT))
    files = [CONFIGS / f"{name}.json" for name in ("train", *([overlay] if overlay else []))]
    files += [next(CONFIGS.glob(f"*/{arm}.json")), *(CONFIGS / f"{name}.json" for name in patches)]
    workflow = ConfigWorkflow(
        config_file=[str(file) for file in files],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        output_dir=str(output_dir),
        bundle_root=str(ROOT / "bundle"),
        **({"dataset_dir": dataset_dir} if dataset_dir else {}),
        **settings,
    )
    workflow.initialize()
    return workflow


def _calibrated_epochs(folder: Path, arm: str, minutes: float, common: dict[str, Any]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "pilot.json").is_file():
        _in_a_process("pilot", os.cpu_count() or 1, arm=arm, output_dir=folder, **common)
    timing = json.loads((folder / "pilot.json").read_text())
    warm_up = json.loads((CONFIGS / "train.json").read_text())["warm_up"]
    epoch = warm_up * timing["warm_up_epoch_s"] + (1 - warm_up) * timing["epoch_s"]
    return max(8, round((60 * minutes - timing["preparation_s"] - 9 * timing["validation_s"]) / epoch))


def _in_a_process(command: str, threads: int, **arguments: Any) -> None:
    options = [f"--{name}={value}" for name, value in arguments.items() if value is not None]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, __file__, command, *options], check=True, env=environment)


def _table(folder: Path) -> str:
    lines = [
        "| arm | seeds | steps | mean Dice | five smallest | lowest class |",
        "|---|---|---|---|---|---|",
    ]
    for arm, name in ARMS.items():
        files = sorted((folder / arm).glob("*/result.json"))
        if not files:
            continue
        results = [json.loads(file.read_text()) for file in files]
        smallest = sorted(results[0]["voxels"], key=results[0]["voxels"].get)[:SMALLEST]
        means = [statistics.mean(result["dice"].values()) for result in results]
        small = [statistics.mean(result["dice"][organ] for organ in smallest) for result in results]
        lowest = min(min(result["dice"].values()) for result in results)
        cells = [
            name,
            ", ".join(file.parent.name for file in files),
            str(results[0]["steps"]),
            _spread(means),
            _spread(small) if len(results[0]["dice"]) > SMALLEST else "",
            f"{lowest:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


if __name__ == "__main__":
    fire.Fire({"train": train, "pilot": pilot} if sys.argv[1:2] in (["train"], ["pilot"]) else main)
