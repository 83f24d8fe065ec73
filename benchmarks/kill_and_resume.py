"""
Whether a training that is killed again and again ends like one that is not.

    python benchmarks/kill_and_resume.py
    python benchmarks/kill_and_resume.py --kills 30 --seed 1

A training on a small phantom runs through once. Another is killed with SIGKILL, at random moments and, every third
time, while it writes a checkpoint; each time ``resume.json`` goes on with it. Then every step's losses,
``history.csv``, the best model and the last state must be the same, to the last bit. The exit code is 1 where they are
not.

Every training is a process of its own, forked from one that has imported everything.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fire
from bundle_workflow import open_workflow
from toys import TOY, make_toy_phantom

SETTINGS = {
    **TOY,
    "epochs": 14,
    "steps_per_epoch": 3,
    "val_interval": 2,
    "patience": 9,
    "warm_up": 0.1,
    "ramp_up": 0.0,
    "teacher_weights": "none",
    "check_data": False,
    "device": "cpu",
    "amp": False,
}
STEPS = "steps.jsonl"
STATE = Path("models") / "last" / "state.pt"
TERMS = ("loss", "supervised", "unsupervised", "distillation")


def main(kills: int = 10, seed: int = 0) -> None:
    """Kills, resumes and compares."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        make_toy_phantom(Path(folder) / "phantom", cases=(2, 2, 1, 1))
        whole, parts = Path(folder) / "whole", Path(folder) / "parts"
        # Once more, because the first makes the token cache and the time of the second is what moments are drawn from.
        _finish(folder, Path(folder) / "first")
        begin = time.monotonic()
        _finish(folder, whole)
        duration = time.monotonic() - begin
        done = 0
        for number in range(kills):
            process = _start(folder, parts)
            how = _kill(process, parts, draw.uniform(0, duration / kills), while_writing=number % 3 == 2)
            done += process.exitcode == -signal.SIGKILL
            reached = max((row["step"] for row in _steps(parts)), default=0)
            print(f"{number + 1}. {how} after step {reached}", flush=True)
        _finish(folder, parts)
        differences = [*_differences(whole, parts)]
        print(
            f"{done} of {kills} trainings killed. " + ("; ".join(differences) or "All steps, files and states equal.")
        )
        sys.exit(1 if differences or done < kills else 0)


def _start(folder: str, output: Path) -> multiprocessing.process.BaseProcess:
    # Imported once, here: what is forked need not.
    import dinomix_monai.engines
    import dinomix_monai.handlers  # noqa: F401

    process = multiprocessing.get_context("fork").Process(target=_train, args=(folder, output))
    process.start()
    return process


def _finish(folder: str, output: Path) -> None:
    process = _start(folder, output)
    process.join()
    if process.exitcode != 0:
        sys.exit(f"A training failed.\n{(output / 'printed.txt').read_text()[-3000:]}")


def _train(folder: str, output: Path) -> None:
    import torch
    from ignite.engine import Events

    torch.set_num_threads(1)
    output.mkdir(exist_ok=True)
    # Of what a training prints, only its errors matter here.
    os.dup2(os.open(output / "printed.txt", os.O_CREAT | os.O_APPEND | os.O_WRONLY), 1)
    os.dup2(1, 2)
    configs = ("train", "resume") if (output / STATE).is_file() else ("train",)
    workflow = open_workflow(
        *configs,
        dataset_dir=f"{folder}/phantom",
        **{"token_cache#folder": f"{folder}/tokens"},
        output_dir=str(output),
        **SETTINGS,
    )
    trainer = workflow.parser.get_parsed_content("train#trainer")
    with (output / STEPS).open("a") as file:

        def note(engine: Any) -> None:
            losses = {term: float(engine.state.output.get(term, 0)) for term in TERMS}
            file.write(json.dumps({"step": engine.state.iteration, **losses}) + "\n")
            file.flush()

        trainer.add_event_handler(Events.ITERATION_COMPLETED, note)
        trainer.run()


def _kill(process: Any, output: Path, moment: float, while_writing: bool) -> str:
    """Kills at a moment after the first sign of the training, and then not before it writes a checkpoint if asked."""
    known = len(_steps(output))
    while process.is_alive() and len(_steps(output)) == known:
        time.sleep(0.01)
    time.sleep(moment)
    partial = output / STATE.with_name(f".{STATE.name}.partial")
    while while_writing and process.is_alive() and not partial.exists():
        time.sleep(0.0005)
    process.kill()
    process.join()
    if process.exitcode != -signal.SIGKILL:
        return f"ended with exit code {process.exitcode}"
    return "killed in a checkpoint" if partial.exists() else "killed"


def _steps(output: Path) -> list[dict[str, float]]:
    file = output / STEPS
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def _differences(whole: Path, parts: Path) -> Any:
    import torch

    expected = {row["step"]: row for row in _steps(whole)}
    found = _steps(parts)
    if wrong := sorted({row["step"] for row in found if row != expected.get(row["step"])}):
        yield f"losses differ from step {wrong[0]} on"
    if missing := expected.keys() - {row["step"] for row in found}:
        yield f"{len(missing)} steps are missing"
    if (whole / "history.csv").read_text() != (parts / "history.csv").read_text():
        yield "history.csv differs"
    for name in (STATE, Path("models") / "model.pt"):
        one, other = (_flat(torch.load(folder / name, weights_only=True)) for folder in (whole, parts))
        if one.keys() != other.keys() or not all(_is_equal(one[key], other[key]) for key in one):
            yield f"{name} differs"


def _flat(state: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(state, (dict, list, tuple)):
        return {path: state}
    pairs = state.items() if isinstance(state, dict) else enumerate(state)
    return {name: leaf for key, value in pairs for name, leaf in _flat(value, f"{path}/{key}").items()}


def _is_equal(one: Any, other: Any) -> bool:
    import torch

    return torch.equal(one, other) if torch.is_tensor(one) else one == other


if __name__ == "__main__":
    fire.Fire(main)
