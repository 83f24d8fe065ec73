"""Scans with voxels that are no numbers."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import ImageMetaKey

__all__ = ["FiniteVoxelsd"]


class FiniteVoxelsd(MapTransform):
    """
    Gives voxels that are NaN or infinite the least finite value of their channel, with a warning; takes one sample.

    Resampling writes NaN beyond the field of view. A network with instance norm spreads a single one over its whole
    window, whose argmax is then background without a word. MONAI's ``SignalFillEmptyd`` needs a value that suits every
    modality, and says nothing. Put it before anything that interpolates.

    Args:
        keys: images.
        allow_missing_keys: whether a key may be missing.

    Raises:
        ValueError: When a channel has no finite voxel.
    """

    def __init__(self, keys: KeysCollection, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with images as tensors, shape (C, H, W[, D]).
        """
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            is_finite = torch.as_tensor(image).isfinite()
            if is_finite.all():
                continue
            meta = image.meta if isinstance(image, MetaTensor) else {}
            file = meta.get(ImageMetaKey.FILENAME_OR_OBJ, key)
            if not is_finite.flatten(1).any(1).all():
                raise ValueError(f"Images must have voxels that are numbers, got {file} with none. Export it anew.")
            filled = image.clone()
            for channel, known in zip(filled, is_finite):
                if known.all():
                    continue
                least, number = float(channel[known].min()), int((~known).sum())
                warnings.warn(
                    f"{file} has {number} voxels that are NaN or infinite: they count as {least:g}.", stacklevel=2
                )
                channel[~known] = least
            result[key] = filled
        return result
