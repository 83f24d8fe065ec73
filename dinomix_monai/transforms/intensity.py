"""Intensities of an image in [0, 1]."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import (
    MapTransform,
    ScaleIntensityRange,
    ScaleIntensityRanged,
    ScaleIntensityRangePercentiles,
    ScaleIntensityRangePercentilesd,
    Transform,
)

from dinomix_monai.volumes import Window, channel_windows

__all__ = ["AIR_HU", "ScaleChannelsd", "intensity_scaling", "scaling_window"]

AIR_HU = -500.0
"""Only CT, in Hounsfield units, reaches down to this."""

# Without the few voxels that are much brighter than all others.
_PERCENTILES = (0.5, 99.5)


def intensity_scaling(keys: KeysCollection, window: Sequence | None = None) -> Transform:
    """
    Transform that scales images to [0, 1] and clips what is outside: MONAI's, where all channels are scaled alike.

    Args:
        keys: images.
        window: intensities that become 0 and 1, where one means the same in all images, as in CT; ``None`` for the
            0.5th and the 99.5th percentile of each image, as for MR; or a list with either of these for each channel,
            as for PET and CT.

    Raises:
        ValueError: When the window is none of these.

    Example:
        >>> import numpy as np
        >>> float(intensity_scaling("image", [-160, 240])({"image": np.array([[40.0]])})["image"][0, 0])
        0.5
    """
    windows = channel_windows(window)
    if len(windows) > 1:
        return ScaleChannelsd(keys, windows)
    limits: dict[str, Any] = {"b_min": 0, "b_max": 1, "clip": True}
    if windows[0] is None:
        return ScaleIntensityRangePercentilesd(keys, *_PERCENTILES, channel_wise=True, **limits)
    return ScaleIntensityRanged(keys, *windows[0], **limits)


class ScaleChannelsd(MapTransform):
    """
    Scales each channel to [0, 1] by a window of its own, and clips what is outside; takes one sample.

    Args:
        keys: images.
        windows: for each channel, the intensities that become 0 and 1, or ``None`` for percentiles of each image.
    """

    def __init__(self, keys: KeysCollection, windows: Sequence[Window]) -> None:
        super().__init__(keys)
        self.windows = list(windows)
        limits: dict[str, Any] = {"b_min": 0, "b_max": 1, "clip": True}
        self._scalers = [
            ScaleIntensityRangePercentiles(*_PERCENTILES, **limits)
            if window is None
            else ScaleIntensityRange(*window, **limits)
            for window in windows
        ]

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with images as tensors, shape (C, H, W[, D]).

        Raises:
            ValueError: When an image has another number of channels.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            if len(image) != len(self._scalers):
                raise ValueError(
                    f"intensity_window must have an entry for each channel, got {len(self._scalers)} for an image "
                    f"with {len(image)}."
                )
            result[key] = torch.cat([torch.as_tensor(scale(image[i : i + 1])) for i, scale in enumerate(self._scalers)])
        return result


def scaling_window(scale_intensity: Transform) -> Window | list[Window]:
    """
    The intensities that a transform of :func:`intensity_scaling` maps to [0, 1], or a list with those of each channel.

    ``None`` stands for a transform that adapts to each image, and for one of another kind.
    """
    if isinstance(scale_intensity, ScaleChannelsd):
        return scale_intensity.windows
    if not isinstance(scale_intensity, ScaleIntensityRanged):
        return None
    return scale_intensity.scaler.a_min, scale_intensity.scaler.a_max
