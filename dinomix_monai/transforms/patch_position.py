"""Where in its volume a patch lies."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from dinomix_monai.core.keys import BatchKeys

__all__ = ["PatchPositiond"]


class PatchPositiond(MapTransform):
    """
    Writes the offset of a patch's center from the center of the volume it was cut from; takes one sample.

    The offset is in voxels along the axes of the patch. It comes from the affine of the patch, the original affine and
    the original shape, so it is right after any chain of MONAI's spatial transforms, random ones included. Put it after
    the last of them.

    Args:
        keys: image; with several, the last one counts.
        position_key: entry to write, a float tensor of shape (D,).
        allow_missing_keys: whether a key may be missing.

    Raises:
        TypeError: When the image is not a ``MetaTensor`` and so has no affine.
    """

    def __init__(
        self, keys: KeysCollection, position_key: str = BatchKeys.POSITION, allow_missing_keys: bool = False
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.position_key = position_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with images of shape (C, H, W[, D]).
        """
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            if not isinstance(image, MetaTensor):
                raise TypeError(
                    f"{key} must be a MetaTensor, whose affine tells where it lies, got {type(image).__name__}."
                )
            # In NumPy: as tensors, so small matrices take twice the time.
            affine, original = (np.asarray(each, float) for each in (image.affine, image.meta["original_affine"]))
            dims = image.ndim - 1
            volume_shape = np.asarray(image.meta["spatial_shape"][:dims], float)
            center = _apply(affine, (np.asarray(image.shape[1:]) - 1) / 2)
            offset_mm = center - _apply(original, (volume_shape - 1) / 2)
            offset = np.linalg.solve(affine[:dims, :dims], offset_mm)
            result[self.position_key] = torch.from_numpy(offset).float()
        return result


def _apply(affine: np.ndarray, point: np.ndarray) -> np.ndarray:
    dims = len(point)
    return affine[:dims, :dims] @ point + affine[:dims, -1]
