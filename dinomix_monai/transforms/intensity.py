"""Intensities of an image in [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence

from monai.config import KeysCollection
from monai.transforms import ScaleIntensityRanged, ScaleIntensityRangePercentilesd, Transform

__all__ = ["intensity_scaling"]

# Without the few voxels that are much brighter than all others.
_PERCENTILES = (0.5, 99.5)


def intensity_scaling(keys: KeysCollection, window: Sequence[float] | None = None) -> Transform:
    """
    MONAI's transform that scales images to [0, 1] and clips what is outside.

    Args:
        keys: images.
        window: intensities that become 0 and 1, where one means the same in all images, as in CT; ``None`` for the
            0.5th and the 99.5th percentile of each image, as for MR.

    Raises:
        ValueError: When the window is not two numbers, the first one below the second.

    Example:
        >>> import numpy as np
        >>> float(intensity_scaling("image", [-160, 240])({"image": np.array([[40.0]])})["image"][0, 0])
        0.5
    """
    if window is None:
        low, high = _PERCENTILES
        return ScaleIntensityRangePercentilesd(keys, low, high, b_min=0, b_max=1, clip=True)
    is_pair = isinstance(window, Sequence) and not isinstance(window, str) and len(window) == 2
    if not is_pair or not all(isinstance(end, (int, float)) for end in window) or not window[0] < window[1]:
        raise ValueError(
            "intensity_window must be two intensities, the first one below the second, or null for the percentiles of "
            f"each image, got {window}."
        )
    a_min, a_max = window
    return ScaleIntensityRanged(keys, a_min, a_max, b_min=0, b_max=1, clip=True)
