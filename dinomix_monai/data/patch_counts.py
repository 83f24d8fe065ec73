"""What random patches of the labeled volumes show."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation

from dinomix_monai.core.known_voxels import counts_if_all_known
from dinomix_monai.data.datalist import Datalist
from dinomix_monai.volumes import open_volume, read_geometry, resampled_shape

__all__ = ["patch_voxels"]


def patch_voxels(datalist: Datalist, patch_size: Sequence[int], spacing_mm: Sequence[float]) -> list[float]:
    """
    Voxels of each class that a patch shows on average, summed over the labeled training cases.

    The patch is cut at random as the unlabeled ones are: resampled, wherever it fits, each place as probable. Such
    patches show the middle of a volume more often than its borders, and each volume as often as the others, however
    large it is; so a class has another share of them than of the volumes' voxels. What a patch is padded with is
    background.

    Args:
        datalist: the data set; labels are read once.
        patch_size: voxels of a patch along the axes R, A and S.
        spacing_mm: voxel size that volumes are resampled to, along the same axes; what is not above 0 is their own.

    Returns:
        One number for each class, background first; all 0 without labeled cases.

    Raises:
        ValueError: When a label cannot be read, or has values that are no classes.
    """
    total = np.zeros(datalist.num_values)
    for case in datalist.training:
        label = datalist.coded_label(case["label"])
        total += _of_case(case["label"], label, datalist.num_values, patch_size, spacing_mm)
    if (possible := datalist.possible) is None:
        return total.tolist()
    # Of a voxel with a class all is known, of one with a set of classes which it is not.
    classes = datalist.num_classes
    is_known = np.concatenate([np.ones((classes, classes), dtype=bool), ~possible[classes:]])
    return counts_if_all_known(total[:classes], total, is_known).tolist()


def _of_case(
    file: str, label: np.ndarray, num_values: int, patch_size: Sequence[int], spacing_mm: Sequence[float]
) -> np.ndarray:
    place = read_geometry(open_volume(file).header)
    # For each axis of the file, the axis of the body.
    axes = io_orientation(place.affine)[:, 0].astype(int)
    own = voxel_sizes(place.affine)
    wanted = np.asarray(spacing_mm, dtype=float)[axes]
    sides = np.round(resampled_shape(place.shape, own, wanted)).astype(int)
    patch = np.asarray(patch_size)[axes]
    shown = [_shown(*each) for each in zip(place.shape, sides, patch)]
    # The last axis is one at a time, so that the weights of a whole volume are never in memory.
    plane = np.multiply.outer(shown[0], shown[1]).ravel()
    voxels = np.zeros(num_values)
    for number, weight in enumerate(shown[2]):
        voxels += weight * np.bincount(label[:, :, number].ravel(), plane, num_values)
    voxels[0] += np.prod(patch) - np.prod(np.minimum(patch, sides))
    return voxels


def _shown(length: int, side: int, patch: int) -> np.ndarray:
    """
    How many voxels of a random patch fall on each voxel of an axis, on average.

    Args:
        length: voxels of the file.
        side: voxels after resampling.
        patch: voxels of the patch.
    """
    places = max(side - patch, 0) + 1
    index = np.arange(side)
    shown = (
        np.minimum.reduce([index + 1, side - index, np.full(side, min(patch, side)), np.full(side, places)]) / places
    )
    own = np.interp(np.linspace(0, side - 1, length), index, shown)
    return own * min(patch, side) / own.sum()
