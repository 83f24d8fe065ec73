"""One arm of a comparison: how many epochs fit into a time, and a training of that length, scored."""

from __future__ import annotations

import csv
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
from bundle_workflow import CONFIGS, ROOT, open_workflow


def epochs_of_arm(folder: Path, minutes: float, arm: str, **data: Any) -> int:
    """Epochs of an arm that fit into a wall time on all cores, from ``pilot.json``, which is made if it is missing."""
    from dinomix_monai.training_plan import fitting_epochs

    if not (folder / "pilot.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        in_a_process("pilot", os.cpu_count() or 1, arm=arm, output_dir=folder, **data)
    timing = json.loads((folder / "pilot.json").read_text())
    beside = timing["preparation_s"] + 9 * timing["validation_s"] + timing.get("probe_s", 0)
    epoch = timing["warm_up_epoch_s"], timing["epoch_s"]
    return fitting_epochs(60 * minutes, beside, epoch, timing["warm_up"], at_least=8)


def in_a_process(command: str, threads: int, **arguments: Any) -> None:
    """Runs ``train`` or ``pilot`` in a process of its own with so many threads."""
    options = [
        f"--{name}={json.dumps(value) if isinstance(value, list) else value}" for name, value in arguments.items()
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run([sys.executable, __file__, command, *options], check=True, env=environment)


def train(arm: str, seed: int, epochs: int, output_dir: str, overlays: Sequence[str] = (), **settings: Any) -> None:
    """
    Trains one arm, scores its best model once on the test cases, and writes ``result.json``.

    A run that was stopped goes on where its last epoch ended; its wall time is then that of the last piece.
    """
    from dinomix_monai.bundle import prepare_volumes

    folder = Path(output_dir)
    if arm == "self_training":
        # Half of the time for the model that labels.
        first, epochs = epochs // 2, epochs - epochs // 2
        before = time.perf_counter()
        settings["first_model"] = str(_first_model(folder / "first", seed, first, overlays, **settings))
        first_s = time.perf_counter() - before
    else:
        first_s = 0.0
    settings = {"seed": seed, "epochs": epochs, "val_interval": max(1, epochs // 8), **settings}
    # What the teacher says of the volumes is the same in every run.
    tokens = {"token_cache#folder": str(folder.parents[1] / "tokens")}
    is_resumed = (folder / "models/last/state.pt").is_file()
    workflow = _workflow(arm, folder, overlays, *(["resume"] if is_resumed else []), **tokens, **settings)
    prepare_volumes(workflow.parser)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    start = time.perf_counter()
    trainer.run()
    workflow.parser.get_parsed_content("report#add_probe")()
    wall = first_s + time.perf_counter() - start
    probe = workflow.parser.get_parsed_content("report#probe")
    datalist = workflow.parser.get_parsed_content("datalist")
    split = "test" if datalist.test else "validation"
    patch = {"split": split, "report_dir": str(folder / "test")}
    _workflow(arm, folder, overlays, "evaluate", **patch, **settings).run()
    with (folder / "test" / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["rule"] == "sound" and row["dice"]]
    dice: dict[str, list[float]] = {}
    for row in rows:
        dice.setdefault(row["class"], []).append(float(row["dice"]))
    result = {
        **settings, "split": split, "wall_s": wall, "resumed": is_resumed, "steps": trainer.state.iteration,
        "learning_rate": workflow.parser.get_parsed_content("learning_rate"),
        "probe_weight": probe.weight if probe else 0.0,
        "validation": workflow.parser.get_parsed_content("validate#best_model").best,
        "dice": {name: statistics.mean(values) for name, values in dice.items()},
        "voxels": dict(zip(datalist.class_names[1:], datalist.training_voxels[1:])),
    }  # fmt: skip
    for path in ("dataset_dir", "first_model", "teacher_weights"):
        result.pop(path, None)
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")


def _first_model(folder: Path, seed: int, epochs: int, overlays: Sequence[str], **settings: Any) -> Path:
    model_file = folder / "models" / "model.pt"
    if not (folder / "done").is_file():
        length = {"seed": seed, "epochs": epochs, "val_interval": max(1, epochs // 8)}
        _workflow("supervised", folder, overlays, **length, **settings).parser.get_parsed_content("train#trainer").run()
        (folder / "done").touch()
    return model_file


def pilot(arm: str, output_dir: str, overlays: Sequence[str] = (), **settings: Any) -> None:
    """Times the preparation, epochs with and without unlabeled patches, and a validation; writes ``pilot.json``."""
    from ignite.engine import Events

    from dinomix_monai.bundle import prepare_volumes

    epochs = 8
    folder = Path(output_dir) / "pilot"
    shutil.rmtree(folder, ignore_errors=True)
    # Both of its trainings have the steps of this one.
    arm = "supervised" if arm == "self_training" else arm
    warm_up = _workflow(arm, folder, overlays, **settings).parser.get_parsed_content("warm_up")
    settings = {
        **settings,
        "epochs": epochs,
        "val_interval": epochs,
        "warm_up": 0.375,
        "token_cache#folder": str(folder / "tokens"),
    }
    workflow = _workflow(arm, folder, overlays, **settings)
    start = time.perf_counter()
    prepare_volumes(workflow.parser)
    preparation = time.perf_counter() - start
    trainer = workflow.parser.get_parsed_content("train#trainer")
    validator = workflow.parser.get_parsed_content("validate#evaluator")
    times: dict[str, list[float]] = {"start": [], "end": [], "validation": []}
    trainer.add_event_handler(Events.EPOCH_STARTED, lambda: times["start"].append(time.perf_counter()))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: times["end"].append(time.perf_counter()))
    for event in (Events.STARTED, Events.COMPLETED):
        validator.add_event_handler(event, lambda: times["validation"].append(time.perf_counter()))
    trainer.run()
    start = time.perf_counter()
    workflow.parser.get_parsed_content("report#add_probe")()
    probe = time.perf_counter() - start
    lengths = [end - start for start, end in zip(times["start"], times["end"])]
    validation = times["validation"][1] - times["validation"][0] if times["validation"] else 0.0
    # The first epoch fills caches, the fourth begins to use unlabeled patches, and the last one validates. The fastest
    # of the others is what an epoch costs when nothing else runs.
    timing = {
        "preparation_s": preparation,
        "warm_up": warm_up,
        "warm_up_epoch_s": min(lengths[1:3]),
        "epoch_s": min(lengths[4:7]),
        "validation_s": validation,
        "probe_s": probe,
    }
    (Path(output_dir) / "pilot.json").write_text(json.dumps(timing, indent=1) + "\n")


def _workflow(arm: str, output_dir: Path, overlays: Sequence[str], *patches: str, **settings: Any) -> Any:
    # An arm goes by its name, whatever its folder; the method itself is the bundle as it is.
    arms = [str(file) for folder in (CONFIGS, ROOT / "benchmarks") for file in folder.glob(f"*/{arm}.json")]
    # What an arm is has the last word: one with an untrained teacher keeps it, whatever all arms are given.
    own = {name for file in arms for name in json.loads(Path(file).read_text())}
    given = {name: value for name, value in settings.items() if name not in own}
    return open_workflow("train", *overlays, *arms, *patches, output_dir=str(output_dir), **given)


if __name__ == "__main__":
    fire.Fire({"train": train, "pilot": pilot})
