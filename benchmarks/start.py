"""
How long a training takes from the command to the end of its first steps, imports included.

    python benchmarks/start.py

Three starts on the default phantom, each in a process of its own: from nothing (the phantom is made, and the frozen
teacher sees the volumes of the first steps and those that the components of its tokens are found on), with the phantom
there, and with the token cache of an earlier training there as well. The first step that distills comes after the
first one, and it is what the teacher is needed for. Beside its time stands what it took of all cores together: on a
busy machine that is the number to trust.
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
MARK = "CPU seconds: "
# What each start finds of the one before.
STARTS = {"from nothing": (), "with the phantom": ("phantom",), "with phantom and tokens": ("phantom", "tokens")}


def main(repetitions: int = 3) -> None:
    """Prints the table, of the fastest repetition of each start."""
    print("| start | first step after | first that distills after | its CPU time |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for start, found in STARTS.items():
            times = []
            for _ in range(repetitions):
                for name in {"phantom", "tokens"} - set(found):
                    shutil.rmtree(Path(folder) / name, ignore_errors=True)
                times.append(_first_steps(folder))
            distilling, first, cpu = min(times)
            print(f"| {start} | {first:.1f} s | {distilling:.1f} s | {cpu:.1f} s |", flush=True)


def _first_steps(folder: str) -> tuple[float, float, float]:
    """Seconds to the end of the first step that distills and of the first one, and the CPU time of the former."""
    start = time.perf_counter()
    with subprocess.Popen([sys.executable, __file__, "child", folder], stdout=subprocess.PIPE, text=True) as process:
        ends = [
            (time.perf_counter() - start, float(line.removeprefix(MARK)))
            for line in process.stdout or ()
            if line.startswith(MARK)
        ]
    if process.returncode or not ends:
        sys.exit(f"The training must come to its first step, got exit code {process.returncode}.")
    return ends[-1][0], ends[0][0], ends[-1][1]


def child(folder: str) -> None:
    """Runs the command of the README up to the first step that distills; prints the CPU time after each step."""
    from dinomix_monai.engines import DinoMixTrainer

    step = DinoMixTrainer._iteration

    def first_steps(trainer: Any, *arguments: Any) -> Any:
        output = step(trainer, *arguments)
        print(f"{MARK}{sum(os.times()[:2])}", flush=True)
        if trainer.distiller.is_due(trainer.state.iteration):
            # Nothing of what a training does at its end belongs to its start.
            os._exit(0)
        return output

    DinoMixTrainer._iteration = first_steps  # type: ignore[method-assign]  # for the one purpose of this file
    os.chdir(ROOT)
    config = "bundle/configs/train.json"
    sys.argv = ["monai.bundle", "run", "training", "--config_file", config, "--teacher_weights", "none"]
    for name, path in (("datalist#phantom_dir", "phantom"), ("output_dir", ""), ("token_cache#folder", "tokens")):
        sys.argv += [f"--{name}", str(Path(folder) / path)]
    runpy.run_module("monai.bundle", run_name="__main__")


if __name__ == "__main__":
    fire.Fire({"child": child} if sys.argv[1:2] == ["child"] else main)
