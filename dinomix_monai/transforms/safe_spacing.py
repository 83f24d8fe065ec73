"""Resampling of volumes that come from others."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from monai.data import MetaTensor
from monai.transforms import Spacingd
from monai.utils import ImageMetaKey

from dinomix_monai.core.text import by
from dinomix_monai.volumes import MOST_VOXELS, resampled_shape

__all__ = ["SafeSpacingd"]


class SafeSpacingd(Spacingd):
    """
    ``monai.transforms.Spacingd`` for files that come from others; takes one sample.

    A header that lies about the size of its voxels does not fill the memory. And what is no metadata is left alone:
    since 1.6.0 MONAI's takes every entry whose name begins with that of the image and an underscore for a dictionary of
    metadata. It fails on MONAI Label's ``image_path``, a string by which the writer of the result chooses its format.

    Args:
        *args: see ``monai.transforms.Spacingd``.
        **kwargs: likewise.

    Raises:
        ValueError: When a volume would have more than 2^31 voxels.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resamples; what is neither one of the keys nor a dictionary is passed through."""
        names = tuple(f"{key}_" for key in self.keys)
        others = {
            key: value
            for key, value in data.items()
            if key not in self.keys and str(key).startswith(names) and not isinstance(value, dict)
        }
        for key in self.key_iterator(data):
            if isinstance(data[key], MetaTensor):
                self._check_size(data[key])
        seen = {key: value for key, value in data.items() if key not in others}
        return {**super().__call__(seen, lazy=lazy), **others}

    def _check_size(self, image: MetaTensor) -> None:
        lengths = image.shape[1:]
        # As MONAI, which takes the last one for further axes.
        target = np.pad(self.spacing_transform.pixdim, (0, len(lengths)), "edge")[: len(lengths)]
        shape = resampled_shape(lengths, np.asarray(image.pixdim), target)
        if not shape.prod() <= MOST_VOXELS:
            file = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ, "one")
            raise ValueError(
                f"Images must have at most 2^31 voxels when resampled, got {file} with {by(shape.round())}. Correct "
                "the voxel size in its header, or set a coarser spacing_mm."
            )
