"""
How long a training takes from the command to the end of its first step that distills, imports included.

    python benchmarks/start.py

Three starts on the default phantom, each in a process of its own: from nothing (the phantom is made, and the frozen
teacher sees the volumes of the first steps and those that the components of its tokens are found on), with the phantom
there, and with the token atlas of an earlier training there as well. Beside the time stands what it took of all cores
together: on a busy machine that is the number to trust.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import fire

ROOT = Path(__file__).parents[1]
# What each start finds of the one before.
STARTS = {"from nothing": (), "with the phantom": ("phantom",), "with phantom and atlas": ("phantom", "atlas")}


def main(repetitions: int = 3) -> None:
    """Prints the table, of the fastest repetition of each start."""
    print("| start | first step after | CPU time |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for start, found in STARTS.items():
            times = []
            for _ in range(repetitions):
                for name in {"phantom", "atlas"} - set(found):
                    shutil.rmtree(Path(folder) / name, ignore_errors=True)
                times.append(_first_step(folder))
            wall, cpu = min(times)
            print(f"| {start} | {wall:.1f} s | {cpu:.1f} s |", flush=True)


def _first_step(folder: str) -> tuple[float, float]:
    start = time.perf_counter()
    result = subprocess.run([sys.executable, __file__, "child", folder], check=True, capture_output=True, text=True)
    return time.perf_counter() - start, float(result.stdout.splitlines()[-1])


def child(folder: str) -> None:
    """Runs the command of the README up to the end of its first step that distills, and prints the CPU time."""
    from dinomix_monai.engines import DinoMixTrainer

    step = DinoMixTrainer._iteration

    def first_steps(trainer: Any, *arguments: Any) -> Any:
        output = step(trainer, *arguments)
        if trainer.distiller.is_due(trainer.state.iteration):
            print(sum(os.times()[:2]), flush=True)
            # Nothing of what a training does at its end belongs to its start.
            os._exit(0)
        return output

    DinoMixTrainer._iteration = first_steps  # type: ignore[method-assign]  # for the one purpose of this file
    os.chdir(ROOT)
    config = "bundle/configs/train.json"
    sys.argv = ["monai.bundle", "run", "training", "--config_file", config, "--teacher_weights", "none"]
    for name, path in (("phantom_dir", "phantom"), ("output_dir", ""), ("atlas_dir", "atlas")):
        sys.argv += [f"--{name}", str(Path(folder) / path)]
    runpy.run_module("monai.bundle", run_name="__main__")


if __name__ == "__main__":
    fire.Fire({"child": child} if sys.argv[1:2] == ["child"] else main)
