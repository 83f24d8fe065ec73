"""
What ``torch.compile`` brings to a training step, and what it costs before the first one.

    python benchmarks/compiled_step.py

Two students of the bundle train on the same phantom of a few patients, one of them compiled together with its EMA
teacher, from an empty cache. Their steps take turns, so that whatever else the machine does meets both.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Iterator

import fire
from step_cost import open_trainer, steps_of, take_turns

# So many steps may compile: two numbers of patches, each with gradient and without.
COMPILING = 4


def main(repetitions: int = 40) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        times = take_turns({"as it is": _steps(folder, False), "compiled": _steps(folder, True)}, repetitions)
    print(f"| form | first {COMPILING} steps | median of the others |\n|---|---|---|")
    for form, values in times.items():
        later = statistics.median(values[COMPILING:])
        print(f"| {form} | {sum(values[:COMPILING]):.1f} s | {1e3 * later:.0f} ms |")


def _steps(folder: str, compiled: bool) -> Iterator[None]:
    trainer = open_trainer("FKD from the token cache", folder)
    if compiled:
        trainer.network.compile()
        trainer.ema_teacher.module.compile()
    return steps_of(trainer)


if __name__ == "__main__":
    fire.Fire(main)
