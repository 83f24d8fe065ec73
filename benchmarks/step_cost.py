"""
What a training step costs with FKD and without: time as ratios within one process, and memory.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --teacher vit_large_patch16_dinov3 --repetitions 60

Every form trains its own student on the same phantom of a few patients. Their steps take turns, so that whatever else
the machine does meets all of them, and medians are compared. FKD is computed in every step here, whatever the
interval that the bundle sets.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fire

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundle" / "configs"
FORMS = {
    "no FKD": ("ablation/pic",),
    "FKD from the atlas": (),
    "FKD online": ("online_teacher",),
}


def main(teacher: str = "vit_small_patch16_dinov3", repetitions: int = 40) -> None:
    """Prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        # Each form in a process of its own, because a peak is never taken back, and while this process is small,
        # because theirs begin with its peak. The first form that needs the atlas makes it.
        memory = {form: _in_a_process(form, folder, teacher) for form in FORMS}
        medians = _interleaved(folder, teacher, repetitions)
    print(f"{teacher}, untrained\n| form | step | ratio | peak memory |\n|---|---|---|---|")
    for form, median in medians.items():
        ratio = median / medians["no FKD"]
        print(f"| {form} | {1e3 * median:.0f} ms | {ratio:.2f} | {memory[form]:.0f} MB |")


def peak(form: str, folder: str, teacher: str) -> None:
    """Takes ten steps and prints the peak memory of this process in MB."""
    steps = _steps(form, folder, teacher)
    for _ in range(10):
        next(steps)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def _interleaved(folder: str, teacher: str, repetitions: int) -> dict[str, float]:
    streams = {form: _steps(form, folder, teacher) for form in FORMS}
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(repetitions):
        for form, stream in streams.items():
            start = time.perf_counter()
            next(stream)
            times[form].append(time.perf_counter() - start)
    # The first steps fill caches.
    return {form: statistics.median(values[5:]) for form, values in times.items()}


def _steps(form: str, folder: str, teacher: str) -> Iterator[None]:
    trainer = _trainer(form, folder, teacher)
    trainer.unsupervised_weight = 1.0
    while True:
        for batch in trainer.data_loader:
            trainer.state.iteration += 1
            trainer._iteration(trainer, batch)
            yield


def _trainer(form: str, folder: str, teacher: str) -> Any:
    from monai.bundle import ConfigWorkflow

    from dinomix_monai.data import make_phantom

    data = Path(folder) / "phantom"
    if not data.is_dir():
        make_phantom(data, cases=(2, 2, 1, 1))
    workflow = ConfigWorkflow(
        config_file=[str(CONFIGS / f"{name}.json") for name in ("train", *FORMS[form])],
        meta_file=str(CONFIGS / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(ROOT / "bundle"),
        output_dir=folder,
        dataset_dir=str(data),
        check_data=False,
        teacher_model=teacher,
        teacher_weights="none",
        distillation_interval=1,
    )
    workflow.initialize()
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.state.iteration = 0
    return trainer


def _in_a_process(form: str, folder: str, teacher: str) -> float:
    command = [sys.executable, __file__, "peak", form, folder, teacher]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(result.stdout.splitlines()[-1])


if __name__ == "__main__":
    fire.Fire({"peak": peak} if sys.argv[1:2] == ["peak"] else main)
