"""
How time and memory grow with the number of volumes and of classes.

    python benchmarks/growth.py

Volumes: phantoms of 80 x 80 x 56 voxels, a fifth of them labeled, a toy network, whose steps cost next to nothing.
Each number of volumes is checked, preprocessed, seen by the frozen teacher and trained on, once with the volumes in
memory and once mapped from disk (``memory_map.json``), in processes of their own. Classes: the bundle's student on a
few phantoms whose organs are merged or cut into pieces. It writes ``growth.png`` and ``result.json``. Linux only: it
reads ``/proc``.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fire
from bundle_workflow import ROOT, open_workflow
from toys import TOY

STEPS = 20
COLUMNS = {
    "check_s": "check, s",
    "preprocessing_s": "preprocessing, s",
    "tokens_s": "tokens, s",
    "step_ms": "step, ms",
    "memory_mb": "memory, MB",
    "mapped_memory_mb": "memory, mapped, MB",
}


def main(
    volumes: Sequence[int] = (8, 16, 32, 64, 128, 256),
    classes: Sequence[int] = (4, 8, 16, 32, 64),
    out_dir: str = str(ROOT / "benchmarks" / "results" / "growth"),
) -> None:
    """Measures what is missing in ``result.json``, prints both tables and draws them."""
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "result.json"
    result: dict[str, dict[str, Any]] = {"volumes": {}, "classes": {}}
    if file.is_file():
        result = json.loads(file.read_text())
    for kind, numbers, measured in (("volumes", volumes, _of_volumes), ("classes", classes, _of_classes)):
        for number in numbers:
            if str(number) not in result[kind]:
                result[kind][str(number)] = measured(number)
                file.write_text(json.dumps(result, indent=1) + "\n")
        print(_table(kind, result[kind]), flush=True)
    _draw(result, out / "growth.png")


def _of_volumes(count: int) -> dict[str, float]:
    from dinomix_monai.data import make_phantom

    with tempfile.TemporaryDirectory() as folder:
        labeled = max(1, count // 5)
        make_phantom(Path(folder) / "data", cases=(labeled, count - labeled, 1, 1))
        result = _in_a_process(folder, "toy")
        return {**result, "mapped_memory_mb": _in_a_process(folder, "toy", "memory_map")["memory_mb"]}


def _of_classes(count: int) -> dict[str, float]:
    from dinomix_monai.data import make_phantom

    with tempfile.TemporaryDirectory() as folder:
        make_phantom(Path(folder) / "data", cases=(2, 2, 1, 1))
        _reclassify(Path(folder) / "data", count)
        result = _in_a_process(folder, "student")
        return {name: result[name] for name in ("step_ms", "memory_mb")}


def _reclassify(folder: Path, count: int) -> None:
    """Gives a data set so many classes with the background: organs are merged, or cut into slabs along z."""
    import nibabel as nib
    import numpy as np

    content = json.loads((folder / "dataset.json").read_text())
    organs = len(content["labels"]) - 1
    slabs = -(-(count - 1) // organs)
    for file in (folder / "labels").iterdir():
        image = nib.load(file)
        label = np.asarray(image.dataobj).astype(np.int64)
        slab = np.arange(label.shape[2]) * slabs // label.shape[2]
        label = np.where(label > 0, 1 + (label - 1 + organs * slab) % (count - 1), 0)
        nib.save(nib.Nifti1Image(label.astype(np.uint8), image.affine), file)
    content["labels"] = {str(value): f"class {value}" for value in range(count)}
    (folder / "dataset.json").write_text(json.dumps(content))


def _in_a_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "measure", *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(folder: str, network: str, *overlays: str) -> None:
    """Builds a training, takes some steps, and prints what each part took as JSON."""
    from dinomix_monai.data import check_dataset

    data = str(Path(folder) / "data")
    check_s = timed(lambda: check_dataset(data))
    workflow = open_workflow(
        "train",
        *overlays,
        dataset_dir=data,
        output_dir=folder,
        check_data=False,
        teacher_weights="none",
        warm_up=0.0,
        ramp_up=0.0,
        # Volumes as they are: only patches and network are those of the toy. Large cells: the teacher is soon done.
        **({**TOY, "spacing_mm": [4.5, 4.5, 5.5], "token_cell": [8, 8, 8]} if network == "toy" else {}),
    )
    parser = workflow.parser
    preprocessing_s = timed(
        lambda: [parser.get_parsed_content(name) for name in ("train#dataset", "train#unlabeled_dataset")]
    )
    tokens_s = timed(parser.get_parsed_content("token_cache").complete)
    trainer = parser.get_parsed_content("train#trainer")
    trainer.state.iteration = 0
    steps = []
    batches = iter(trainer.data_loader)
    for _ in range(STEPS):
        trainer.state.iteration += 1
        steps.append(timed(lambda: trainer._iteration(trainer, next(batches))))
    result = {
        "check_s": check_s,
        "preprocessing_s": preprocessing_s,
        "tokens_s": tokens_s,
        "step_ms": 1e3 * statistics.median(steps[STEPS // 4 :]),
        "memory_mb": own_memory(),
    }
    print(json.dumps({name: round(value, 2) for name, value in result.items()}))


def timed(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def own_memory() -> float:
    """Memory of this process in MB, without what is mapped from files, which goes where there is no room."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024


def _table(kind: str, rows: dict[str, dict[str, float]]) -> str:
    numbers = sorted(rows, key=int)
    names = [name for name in COLUMNS if name in rows[numbers[0]]]
    lines = [f"| {kind} | {' | '.join(COLUMNS[name] for name in names)} |", f"|{'---|' * (1 + len(names))}"]
    for number in numbers:
        lines.append(f"| {number} | {' | '.join(f'{rows[number][name]:.4g}' for name in names)} |")
    return "\n".join(lines) + "\n"


def _draw(result: dict[str, dict[str, dict[str, float]]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    for column, (kind, rows) in zip(figure.subplots(2, 2).T, result.items()):
        numbers = sorted(map(int, rows))
        for axes, unit in zip(column, (("_s", "_ms"), ("_mb",))):
            for name in (name for name in rows[str(numbers[0])] if name.endswith(unit)):
                axes.plot(numbers, [rows[str(number)][name] for number in numbers], marker=".", label=COLUMNS[name])
            axes.set_xlabel(kind)
            axes.set_ylim(bottom=0)
            axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    fire.Fire({"measure": measure} if sys.argv[1:2] == ["measure"] else main)
