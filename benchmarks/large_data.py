r"""
What a data set of 1,000 CTs of 512 x 512 x 600 voxels with 100 classes asks for, shown on a tenth of it.

    python benchmarks/large_data.py make DIR --cases 1000
    python -m dinomix_monai plan DIR --spacing_mm "[4,4,5]" --token_cell "[8,8,8]" --planned_for none \
        --teacher_weights none --teacher#allow_untrained True
    python benchmarks/large_data.py

The scans are sparse files: 315 MB to whoever reads them, of which some slices of noise lie on disk, and air is the
rest. Of the last command each number of scans is checked, preprocessed, seen by the frozen teacher and trained on with
``memory_map.json``, in a process of its own, and another one starts again with what that has kept. Voxels are read at
full size and resampled to coarse ones; patches, network and tokens are those of a toy. The tokens that a GPU holds are
counted on a device that PyTorch takes for one and whose memory is the host's (``tests/host_gpu.py``). It writes
``result.json``. Linux only: it reads ``/proc``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fire
from bundle_workflow import ROOT, open_workflow
from growth import own_memory, timed
from toys import TOY

SHAPE, SPACING_MM, CLASSES, LABELED = (512, 512, 600), (0.8, 0.8, 1.0), 100, 4
SETTINGS = {**TOY, "spacing_mm": [4.0, 4.0, 5.0], "token_cell": [8, 8, 8]}
STEPS = 20
# Tokens of a few scans, of which each has 6 MB.
DEVICE_GB = 0.002
COLUMNS = {
    "check_s": "check, s",
    "preprocessing_s": "preprocessing, s",
    "tokens_s": "tokens, s",
    "again_s": "next start, s",
    "step_ms": "step, ms",
    "volumes_gb": "volumes on disk, GB",
    "tokens_gb": "tokens on disk, GB",
    "memory_mb": "memory, MB",
    "peak_mb": "memory at its peak, MB",
    "device_mb": "tokens on the device, MB",
}


def main(
    cases: Sequence[int] = (10, 30, 100),
    out_dir: str = str(ROOT / "benchmarks" / "results" / "large_data"),
    shape: Sequence[int] = SHAPE,
) -> None:
    """
    Measures what is missing in ``result.json``, and prints the table after each number of scans.

    Args:
        cases: numbers of scans, six at least.
        out_dir: where ``result.json`` is.
        shape: voxels of a scan.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "result.json"
    result: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}
    for number in cases:
        if str(number) not in result:
            with tempfile.TemporaryDirectory() as folder:
                make(f"{folder}/data", number, shape)
                first = _in_a_process(folder)
                again = _in_a_process(folder)
                result[str(number)] = {**first, "again_s": again["preprocessing_s"] + again["tokens_s"]}
                result[str(number)]["device_mb"] = _in_a_process(folder, "device")["device_mb"]
            file.write_text(json.dumps(result, indent=1) + "\n")
        print(_table(result), flush=True)


def make(folder: str, cases: int = 1000, shape: Sequence[int] = SHAPE) -> None:
    """
    Writes a data set of sparse files.

    Args:
        folder: where to; it is made.
        cases: scans, of which four are labeled and one more is for validation.
        shape: voxels of a scan.
    """
    import numpy as np

    from dinomix_monai.core.files import write_json

    root = Path(folder)
    for name in ("images", "labels"):
        (root / name).mkdir(parents=True)
    listed: dict[str, list[dict[str, str]]] = {"training": [], "validation": [], "unlabeled": []}
    for number in range(cases):
        rng = np.random.default_rng(number)
        case = {"image": f"images/ct_{number:04d}.nii"}
        # Raw 0, as in a hole of the file, is air.
        _write_sparse(root / case["image"], shape, np.int16, -1024.0, _noise(rng, shape))
        if number <= LABELED:
            case["label"] = f"labels/ct_{number:04d}.nii"
            _write_sparse(root / case["label"], shape, np.uint8, 0.0, _organs(shape))
        section = "training" if number < LABELED else "validation" if number == LABELED else "unlabeled"
        listed[section].append(case)
    names = {str(value): f"class {value}" if value else "background" for value in range(CLASSES)}
    write_json(root / "dataset.json", {"modality": {"0": "CT"}, "labels": names, **listed})


def _noise(rng: Any, shape: Sequence[int]) -> dict[int, Any]:
    """Slices of a scan by their numbers: noise around 0 HU."""
    return {z: rng.integers(824, 1324, shape[:2], dtype="int16") for z in range(shape[2] // 8, shape[2], shape[2] // 4)}


def _organs(shape: Sequence[int]) -> dict[int, Any]:
    """Slices of a label map by their numbers: a block for each class, a twentieth of a scan wide, a fiftieth high."""
    import numpy as np

    slices: dict[int, Any] = {}
    for value in range(1, CLASSES):
        layer, place = divmod(value - 1, 25)
        x, y = (side // 20 + side // 5 * one for side, one in zip(shape, divmod(place, 5)))
        bottom = shape[2] // 10 + shape[2] // 4 * layer
        for z in range(bottom, bottom + shape[2] // 50):
            voxels = slices.setdefault(z, np.zeros(shape[:2], np.uint8))
            voxels[x : x + shape[0] // 20, y : y + shape[1] // 20] = value
    return slices


def _write_sparse(path: Path, shape: Sequence[int], dtype: Any, intercept: float, slices: dict[int, Any]) -> None:
    import nibabel as nib
    import numpy as np

    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header.set_zooms(SPACING_MM)
    header.set_sform(np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1.0]), code=1)
    header.set_xyzt_units("mm")
    header["vox_offset"], header["magic"] = 352, b"n+1"
    header["scl_slope"], header["scl_inter"] = 1.0, intercept
    size = shape[0] * shape[1] * np.dtype(dtype).itemsize
    with path.open("wb") as file:
        file.write(header.binaryblock)
        for z, voxels in slices.items():
            file.seek(352 + z * size)
            file.write(np.asarray(voxels, dtype).tobytes(order="F"))
        file.truncate(352 + shape[2] * size)


def _in_a_process(*arguments: str) -> dict[str, float]:
    command = [sys.executable, __file__, "measure", *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measure(folder: str, kind: str = "start") -> None:
    """Prints as JSON what a start and some steps take, or what is held on a device for tokens of all volumes."""
    data = f"{folder}/data"
    settings = {
        **{"dataset_dir": data, "output_dir": f"{folder}/out", "check_data": False, "teacher_weights": "none"},
        **{"teacher#allow_untrained": True, "warm_up": 0.0, "ramp_up": 0.0, **SETTINGS},
    }
    result = _on_the_device(settings) if kind == "device" else _start(data, settings, Path(folder) / "out")
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


def _start(data: str, settings: dict[str, Any], out: Path) -> dict[str, float]:
    from dinomix_monai.data import check_dataset

    with _Peak() as peak:
        result = {"check_s": timed(lambda: check_dataset(data))}
        parser = open_workflow("train", "memory_map", **settings).parser
        names = ("train#dataset", "train#unlabeled_dataset")
        result["preprocessing_s"] = timed(lambda: [parser.get_parsed_content(name) for name in names])
        result["tokens_s"] = timed(parser.get_parsed_content("token_cache").complete)
        trainer = parser.get_parsed_content("train#trainer")
        trainer.state.iteration = 0
        batches = iter(trainer.data_loader)
        steps = []
        for _ in range(STEPS):
            trainer.state.iteration += 1
            steps.append(timed(lambda: trainer._iteration(trainer, next(batches))))
    result["step_ms"] = 1e3 * sorted(steps[STEPS // 4 :])[3 * STEPS // 8]
    for name in ("volumes", "tokens"):
        files = (file for file in (out / name).rglob("*") if file.is_file())
        result[f"{name}_gb"] = sum(file.stat().st_size for file in files) / 1e9
    return {**result, "memory_mb": own_memory(), "peak_mb": peak.most}


def _on_the_device(settings: dict[str, Any]) -> dict[str, float]:
    import torch

    sys.path.insert(0, str(ROOT))
    from tests import host_gpu

    device = host_gpu.register()
    torch.Generator = host_gpu.Generator  # type: ignore[misc]
    bounded = {**settings, "device": device, "token_cache#device_gb": DEVICE_GB}
    parser = open_workflow("train", "memory_map", **bounded).parser
    datasets = [parser.get_parsed_content(name) for name in ("train#dataset", "train#unlabeled_dataset")]
    token_cache, most = parser.get_parsed_content("token_cache"), 0
    for dataset in datasets:
        for item in dataset:
            patch = item[0] if isinstance(item, list) else item
            token_cache(patch["source"][None], (4, 4, 2))
            most = max(most, token_cache.device_bytes)
    return {"device_mb": most / 1e6}


class _Peak:
    """The most memory of this process in MB while it is entered, of its own and not mapped from files."""

    def __enter__(self) -> _Peak:
        self.most, self._is_over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._is_over.wait(0.05):
            self.most = max(self.most, own_memory())

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()


def _table(rows: dict[str, dict[str, float]]) -> str:
    numbers = sorted(rows, key=int)
    lines = [f"| scans | {' | '.join(COLUMNS.values())} |", f"|{'---|' * (1 + len(COLUMNS))}"]
    for number in numbers:
        lines.append(f"| {number} | {' | '.join(f'{rows[number][name]:.4g}' for name in COLUMNS)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    fire.Fire({"measure": measure, "make": make} if sys.argv[1:2] in (["measure"], ["make"]) else main)
