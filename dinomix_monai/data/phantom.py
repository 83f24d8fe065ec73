"""A procedural data set on which the whole method runs without a download."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np

from dinomix_monai.core.files import write_json
from dinomix_monai.data.anatomy import ORGANS, Anatomy, Population, scan

__all__ = ["ALL_LABELS_FILE", "EVERYONE", "NARROW", "make_phantom"]

ALL_LABELS_FILE = "dataset_all_labels.json"
"""A second datalist beside ``dataset.json``, in which the unlabeled cases are labeled too: the bound for benchmarks."""

NARROW = Population(
    rotation_rad=0.02, scale=(0.99, 1.01), shift=0.02, phase=(0.95, 1.0), variation=0.3, noise_hu=(12, 14)
)
"""The labeled patients: one scanner, one protocol, similar bodies."""

EVERYONE = Population(
    rotation_rad=0.2, scale=(0.8, 1.2), shift=0.15, phase=(0.0, 1.0), variation=0.9, noise_hu=(12, 36)
)
"""All other patients, those of validation and test included."""

_SECTIONS = {"training": NARROW, "unlabeled": EVERYONE, "validation": EVERYONE, "test": EVERYONE}


def make_phantom(
    dataset_dir: str | Path,
    seed: int = 0,
    cases: Sequence[int] = (4, 16, 4, 8),
    size: Sequence[int] = (80, 80, 56),
    spacing_mm: Sequence[float] = (4.5, 4.5, 5.5),
) -> Path:
    """
    Writes abdominal phantoms with thirteen organs as uncompressed NIfTI, and ``dataset.json``.

    Every patient has an own generator, seeded by ``seed`` and the patient's number, and all arithmetic is in double
    precision before it is rounded to whole HU: the same arguments give the same bytes. ``dataset.json`` is written
    last, so a folder that has it is complete.

    Args:
        dataset_dir: folder to write to; made if missing.
        seed: seed of the whole data set.
        cases: numbers of labeled, unlabeled, validation and test patients.
        size: voxels in x, y and z.
        spacing_mm: voxel size in x, y and z.

    Returns:
        The path of ``dataset.json``.

    Raises:
        ValueError: When ``cases`` does not have four numbers, or ``size`` less than 16 voxels along an axis.
    """
    if len(cases) != len(_SECTIONS):
        raise ValueError(f"cases must have {len(_SECTIONS)} numbers ({', '.join(_SECTIONS)}), got {tuple(cases)}.")
    if min(size) < 16:
        raise ValueError(f"size must be at least 16 voxels along each axis, got {tuple(size)}.")
    root = Path(dataset_dir)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    # LPS storage, as most scanners write it.
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    sections = [name for name, count in zip(_SECTIONS, cases) for _ in range(count)]

    def write(number: int) -> dict[str, str]:
        image, label = _patient(seed, number, _SECTIONS[sections[number]], size)
        name = f"phantom_{number + 1:03d}.nii"
        for folder, array in (("images", image), ("labels", label)):
            nifti = nib.Nifti1Image(array, affine)
            nifti.header.set_xyzt_units("mm")
            nib.save(nifti, root / folder / name)
        return {"image": f"images/{name}", "label": f"labels/{name}"}

    with ThreadPoolExecutor() as pool:
        pairs = list(pool.map(write, range(len(sections))))
    datalist: dict = {
        "name": "DINO-Mix abdominal phantom",
        "description": "Procedural; not a patient. Thirteen organs in the label order of the Synapse challenge.",
        "phantom_seed": seed,
        "modality": {"0": "CT"},
        "labels": {str(i): name for i, name in enumerate(("background", *ORGANS))},
    }
    listed = {name: [pair for pair, of in zip(pairs, sections) if of == name] for name in _SECTIONS}
    everything = {**datalist, **listed, "training": listed["training"] + listed["unlabeled"], "unlabeled": []}
    write_json(root / ALL_LABELS_FILE, everything)
    listed["unlabeled"] = [{"image": pair["image"]} for pair in listed["unlabeled"]]
    return write_json(root / "dataset.json", {**datalist, **listed})


def _patient(seed: int, number: int, population: Population, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    # RandomState, because its streams are frozen: Generator's may change between NumPy versions.
    random_state = np.random.RandomState([seed, number])
    anatomy = Anatomy(random_state, population, size)
    image = scan(anatomy, random_state, random_state.uniform(*population.noise_hu))
    return image, anatomy.label.reshape(anatomy.size)
