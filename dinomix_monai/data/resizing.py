"""Whole volumes on another number of voxels, as DHC and its successors resize them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["resize_image", "resize_label", "resized_affine", "scale_to_unit"]


def resize_image(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """
    Resizes an image of shape (x, y, z) by trilinear interpolation, without smoothing before it.

    Voxels are boxes that fill the volume before and after (``align_corners=False``), so its outer faces stay where
    they are; :func:`resized_affine` describes exactly that.
    """
    return _interpolate(image, size, mode="trilinear", align_corners=False)


def resize_label(label: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """
    Resizes a label map of shape (x, y, z): voxel ``i`` becomes that of index ``floor(i * old / new)``.

    This is PyTorch's ``nearest``, which the protocols are scored with. It takes the voxel at the lower corner of each
    new one and not at its center, so labels lie up to half a new and half an old voxel beside the image of
    :func:`resize_image`.
    """
    return _interpolate(label, size, mode="nearest").astype(np.uint8)


def resized_affine(affine: np.ndarray, shape: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """
    Affine after resizing from ``shape`` to ``size``: same direction, same outer faces, and so another spacing.

    Args:
        affine: from voxels to mm before, shape (4, 4).
        shape: voxels in x, y and z before.
        size: voxels in x, y and z after.
    """
    scale = np.asarray(shape) / np.asarray(size)
    to_old_voxels = np.diag([*scale, 1.0])
    to_old_voxels[:3, 3] = (scale - 1) / 2
    return affine @ to_old_voxels


def scale_to_unit(image: np.ndarray, window: Sequence[float]) -> np.ndarray:
    """
    Clips an image to a window, then maps its own least and greatest value, not the window's, to 0 and 1.

    Raises:
        ValueError: When nothing is left to scale: one value, or none that is finite.
    """
    clipped = np.clip(image, window[0], window[1])
    low, high = clipped.min(), clipped.max()
    if not low < high:
        raise ValueError(f"image must have finite and different values within {list(window)}, got {low} to {high}.")
    return (clipped - low) / (high - low)


def _interpolate(volume: np.ndarray, size: Sequence[int], **kwargs: Any) -> np.ndarray:
    # In the order (z, y, x), as the protocols' arrays are: another order would round differently.
    zyx = torch.from_numpy(np.ascontiguousarray(volume.T, dtype=np.float32))
    return F.interpolate(zyx[None, None], tuple(reversed(size)), **kwargs)[0, 0].numpy().T
