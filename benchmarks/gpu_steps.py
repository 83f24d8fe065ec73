"""
Steps of the published schedule of Synapse: their time, how busy the GPU is, and its peak memory.

    python benchmarks/gpu_steps.py [--dataset_dir PREPARED] [--steps 300] [--compiled] [--on_cpu]

Without a data set that ``prepare synapse`` has made, one of the same sizes and numbers of scans is made up. The
teacher is untrained unless ``--teacher_weights`` names a file; its tokens are computed before. ``--on_cpu`` keeps
volumes and transforms of patches on the CPU, as loops of MONAI mostly do.
"""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import fire
from bundle_workflow import open_workflow
from step_cost import steps_of

# Of the schedule that the overlay is for.
ALL_STEPS = 12_000
CASES, SHAPE = (4, 16, 1, 1), (160, 160, 80)
# What is first of its kind takes longer: buffers, algorithms, a compiler.
FIRST = 20


def main(
    dataset_dir: str | None = None,
    steps: int = 300,
    compiled: bool = False,
    on_cpu: bool = False,
    teacher_weights: str = "none",
    shape: tuple[int, int, int] = SHAPE,
    cases: tuple[int, int, int, int] = CASES,
    **settings: Any,
) -> None:
    """
    Prints the table.

    Args:
        dataset_dir: prepared data set.
        steps: steps to take after the first few.
        compiled: add ``compile.json``.
        on_cpu: keep volumes and transforms of patches on the CPU.
        teacher_weights: as the bundle's.
        shape: voxels of a volume that is made up.
        cases: labeled, unlabeled, validation and test cases that are made up.
        **settings: ids of the configuration with other values.
    """
    import torch

    from dinomix_monai.bundle import prepare_volumes
    from dinomix_monai.data import make_phantom

    with tempfile.TemporaryDirectory() as folder:
        data = dataset_dir or str(make_phantom(f"{folder}/data", cases=cases, size=shape, spacing_mm=(2, 2, 4)).parent)
        volumes = {"volume_device": "cpu", "train#to_device#device": "cpu"} if on_cpu else {}
        workflow = open_workflow(
            *("train", "synapse", *(["compile"] if compiled else [])),
            **{"dataset_dir": data, "output_dir": folder, "check_data": False, "teacher_weights": teacher_weights},
            **{"teacher#allow_untrained": teacher_weights == "none"},
            **volumes,
            **settings,
        )
        started = time.perf_counter()
        prepare_volumes(workflow.parser)
        preparation = time.perf_counter() - started
        trainer = workflow.parser.get_parsed_content("train#trainer")
        trainer.state.iteration = 0
        stream = steps_of(trainer)
        has_gpu = torch.cuda.is_available()
        times = []
        for _ in range(min(FIRST, steps)):
            next(stream)
        if has_gpu:
            torch.cuda.synchronize()
        with _busy() if has_gpu else contextlib.nullcontext([]) as busy:
            begun = time.perf_counter()
            for _ in range(steps):
                started = time.perf_counter()
                next(stream)
                times.append(time.perf_counter() - started)
            if has_gpu:
                torch.cuda.synchronize()
            # Of all of them, because a step returns before the GPU has done it.
            step = (time.perf_counter() - begun) / steps
    memory = f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB" if has_gpu else "-"
    share = f"{statistics.mean(busy):.0f} %" if busy else "-"
    form = ", ".join(["synapse.json", *(["compiled"] if compiled else []), *(["transforms on the CPU"] * on_cpu)])
    print("| steps | step | slowest tenth | GPU busy | peak memory | preparation | 12,000 steps |")
    print(f"|{'---|' * 7}")
    slow = statistics.quantiles(times, n=10)[-1] if len(times) > 1 else step
    print(
        f"| {form} | {1e3 * step:.0f} ms | {1e3 * slow:.0f} ms | {share} | {memory} | {preparation:.0f} s | "
        f"{ALL_STEPS * step / 3600:.2f} h |"
    )


@contextlib.contextmanager
def _busy() -> Iterator[list[float]]:
    """Percentages that the driver says the GPU is busy, sampled while the block runs."""
    samples: list[float] = []
    ended = threading.Event()
    command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]

    def sample() -> None:
        while not ended.wait(0.3):
            with contextlib.suppress(OSError, ValueError, IndexError, subprocess.SubprocessError):
                found = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout
                samples.append(float(found.split()[0]))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    fire.Fire(main)
