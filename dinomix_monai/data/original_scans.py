"""The scans that a prepared data set was made of."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from monai.data.utils import affine_to_spacing
from torch.nn import functional as F

from dinomix_monai.data.protocol import read_protocol
from dinomix_monai.data.raw_case import RawCase, find_cases

__all__ = ["OriginalScans"]


class OriginalScans:
    """
    Takes predictions for prepared volumes back to the scans, and gives the labels there.

    A prepared volume has the outer faces of its scan, so each voxel of the scan takes the class of the prepared voxel
    that its center lies in.

    Args:
        dataset_dir: folder that :func:`dinomix_monai.data.prepare_dataset` has made.
        raw_dir: the raw folder that it was made from.
        protocol: JSON file of the protocol, for one that is not the package's own.

    Raises:
        FileNotFoundError: When ``dataset_dir`` was not made so.
    """

    def __init__(self, dataset_dir: str | Path, raw_dir: str | Path, protocol: str | Path | None = None) -> None:
        root = Path(dataset_dir).expanduser()
        files = {name: root / f"{name}.json" for name in ("dataset", "originals")}
        if not all(file.is_file() for file in files.values()):
            raise FileNotFoundError(
                f"dataset_dir must be a folder that `prepare` has made, with originals.json, got {root}."
            )
        named = json.loads(files["dataset"].read_bytes())["protocol"]
        self.protocol = read_protocol(protocol or named["dataset"], named["name"])
        self.raw_dir = Path(raw_dir)
        self._originals = json.loads(files["originals"].read_text())

    def __call__(self, image: str | Path, prediction: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[float]]:
        """
        Args:
            image: file of the prepared image; its name tells the case.
            prediction: label map along the axes of that file, shape (1, H, W, D).

        Returns:
            Prediction and label on the grid of the scan, each of shape (1, H, W, D), and its spacing in mm.

        Raises:
            ValueError: When the case is not of the prepared data set, or its scan in ``raw_dir`` has another shape or
                place than it had then.
            FileNotFoundError: When ``raw_dir`` has no such case.
        """
        name = Path(image).name.removesuffix(".nii.gz")
        if name not in self._originals:
            raise ValueError(f"image must be of a case in originals.json, got {image}.")
        case = find_cases(self.protocol, self.raw_dir, {"test": [name]})[0]
        self._check(case)
        label = torch.from_numpy(np.ascontiguousarray(case.read("label"), dtype=np.int16))[None]
        moved = F.interpolate(prediction[None].float(), size=label.shape[1:], mode="nearest-exact")[0]
        return moved.to(prediction.dtype), label, affine_to_spacing(torch.from_numpy(case.affine)).tolist()

    def _check(self, case: RawCase) -> None:
        original = self._originals[case.id]
        shape, affine = case.shape("image"), case.affine
        if list(shape) != original["shape"] or not np.allclose(affine, original["affine"], atol=1e-4):
            raise ValueError(
                f"raw_dir must hold the scans that were prepared, got {case.id} of shape {shape} in {self.raw_dir}, "
                f"which was {tuple(original['shape'])} or lay elsewhere."
            )
