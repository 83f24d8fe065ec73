"""
What a training step costs: with FKD and without, or against two networks that teach each other.

    python benchmarks/step_cost.py
    python benchmarks/step_cost.py --peers
    python benchmarks/step_cost.py --teacher vit_large_patch16_dinov3 --repetitions 60
    python benchmarks/step_cost.py --operators 12

Every form trains its own student on the same phantom of a few patients. Their steps take turns, so that whatever else
the machine does meets all of them, and medians are compared. FKD is computed in every step here, whatever the
interval that the bundle sets. ``--peers`` has the setting in which the costs of published methods were counted: 2
labeled and 2 unlabeled patches of 64 x 64 x 64 voxels, 14 classes, V-Net with 32 filters at full resolution.
``--operators`` adds the operators that take the most time, in each form.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fire
from bundle_workflow import open_workflow

SMALLEST = "vit_small_patch16_dinov3"
FKD_FORMS = {
    "no FKD": ("ablation/pic",),
    "FKD from the token cache": (),
    "FKD online": ("online_teacher",),
}
PEER_FORMS = {"two networks, CPS with DHC's weights": ("baseline/cps",), "DINO-Mix": ()}
FORMS = {**FKD_FORMS, **PEER_FORMS}
PEER_SETTING = {
    "patch_size": [64, 64, 64],
    "unlabeled_batch_size": 2,
    "distiller#modules": ["decoder.2"],
    "network_def": {
        "_target_": "dinomix_monai.networks.VNet",
        "in_channels": 1,
        "out_channels": "@num_classes",
        "n_filters": 32,
    },
}


def main(teacher: str = SMALLEST, repetitions: int = 40, peers: bool = False, operators: int = 0) -> None:
    """Prints the table, with ratios to its first row, and one of so many operators."""
    forms = list(PEER_FORMS if peers else FKD_FORMS)
    with tempfile.TemporaryDirectory() as folder:
        # Each form in a process of its own, because a peak is never taken back, and while this process is small,
        # because theirs begin with its peak. The first form that needs the token cache makes it.
        counted = {form: _in_a_process(form, folder, teacher) for form in forms}
        medians = _interleaved(forms, folder, teacher, repetitions)
        loading = {form: _loading(form, folder, teacher, repetitions) for form in forms}
        profiles = {form: _profile(form, folder, teacher) for form in forms if operators}
    print(f"{teacher}, untrained\n| form | GFLOP | step | ratio | of it loading | peak memory | ratio |")
    print(f"|{'---|' * 7}")
    for form, median in medians.items():
        gflop, memory = counted[form]
        ratios = [f"{a / b:.2f}" for a, b in ((median, medians[forms[0]]), (memory, counted[forms[0]][1]))]
        load = f"{1e3 * loading[form]:.0f} ms"
        print(
            f"| {form} | {gflop:.0f} | {1e3 * median:.0f} ms | {ratios[0]} | {load} | {memory:.0f} MB | {ratios[1]} |"
        )
    if operators:
        print(_operator_table(profiles, operators))


def peak(form: str, folder: str, teacher: str) -> None:
    """Takes a few steps and prints the GFLOP of one and the peak memory of this process in MB."""
    from torch.utils.flop_counter import FlopCounterMode

    steps = steps_of(open_trainer(form, folder, teacher))
    for _ in range(2 if form in PEER_FORMS else 10):
        next(steps)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    with FlopCounterMode(display=False) as counter:
        next(steps)
    print(counter.get_total_flops() / 1e9, memory)


def _interleaved(forms: Sequence[str], folder: str, teacher: str, repetitions: int) -> dict[str, float]:
    times = take_turns({form: steps_of(open_trainer(form, folder, teacher)) for form in forms}, repetitions)
    # The first steps fill caches.
    return {form: statistics.median(values[min(5, repetitions // 3) :]) for form, values in times.items()}


def take_turns(streams: Mapping[str, Iterator[None]], repetitions: int) -> dict[str, list[float]]:
    """Seconds that each step of each stream takes, one of each in turn."""
    times: dict[str, list[float]] = {form: [] for form in streams}
    for _ in range(repetitions):
        for form, stream in streams.items():
            start = time.perf_counter()
            next(stream)
            times[form].append(time.perf_counter() - start)
    return times


def _loading(form: str, folder: str, teacher: str, repetitions: int) -> float:
    """Seconds that the patches of a step take."""
    trainer = open_trainer(form, folder, teacher)
    times = []
    while len(times) < repetitions:
        for _ in trainer.data_loader:
            trainer.next_unlabeled()
            times.append(time.perf_counter())
    return statistics.median(later - earlier for earlier, later in zip(times, times[1:]))


def _profile(form: str, folder: str, teacher: str, repetitions: int = 5) -> dict[str, float]:
    """Milliseconds that each operator takes of a step, without those that it calls."""
    from torch.profiler import ProfilerActivity, profile

    steps = steps_of(open_trainer(form, folder, teacher))
    for _ in range(3):
        next(steps)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repetitions):
            next(steps)
    return {event.key: event.self_cpu_time_total / 1e3 / repetitions for event in profiler.key_averages()}


def _operator_table(profiles: dict[str, dict[str, float]], count: int) -> str:
    totals = {name: sum(times.get(name, 0) for times in profiles.values()) for name in set().union(*profiles.values())}
    names = sorted(totals, key=totals.__getitem__, reverse=True)[:count]
    lines = ["", f"| operator, ms of a step | {' | '.join(profiles)} |", f"|{'---|' * (1 + len(profiles))}"]
    for name in names:
        lines.append(f"| {name} | {' | '.join(f'{times.get(name, 0):.0f}' for times in profiles.values())} |")
    others = {form: sum(times.values()) - sum(times.get(name, 0) for name in names) for form, times in profiles.items()}
    lines.append(f"| all others | {' | '.join(f'{time:.0f}' for time in others.values())} |")
    return "\n".join(lines)


def steps_of(trainer: Any) -> Iterator[None]:
    """Takes a step with each ``next``, without end."""
    trainer.unsupervised_weight = 1.0
    while True:
        for batch in trainer.data_loader:
            trainer.state.iteration += 1
            trainer._iteration(trainer, batch)
            yield


def open_trainer(form: str, folder: str, teacher: str = SMALLEST) -> Any:
    """The trainer of one of ``FORMS``; makes the phantom and the token cache in the folder if they are not there."""
    from dinomix_monai.bundle import prepare_volumes
    from dinomix_monai.data import make_phantom

    data = Path(folder) / "phantom"
    if not data.is_dir():
        make_phantom(data, cases=(2, 2, 1, 1))
    workflow = open_workflow(
        "train",
        *FORMS[form],
        output_dir=folder,
        dataset_dir=str(data),
        check_data=False,
        **{"teacher#model_name": teacher},
        teacher_weights="none",
        **{"distiller#interval": 1},
        **(PEER_SETTING if form in PEER_FORMS else {}),
    )
    prepare_volumes(workflow.parser)
    trainer = workflow.parser.get_parsed_content("train#trainer")
    trainer.state.iteration = 0
    return trainer


def _in_a_process(form: str, folder: str, teacher: str) -> tuple[float, float]:
    command = [sys.executable, __file__, "peak", form, folder, teacher]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    gflop, memory = map(float, result.stdout.split()[-2:])
    return gflop, memory


if __name__ == "__main__":
    fire.Fire({"peak": peak} if sys.argv[1:2] == ["peak"] else main)
