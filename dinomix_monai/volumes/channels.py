"""Images of several channels: a file for each, all on one grid."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import ImageMetaKey, ensure_tuple
from nibabel.filebasedimages import ImageFileError
from nibabel.orientations import apply_orientation

from dinomix_monai.volumes.geometry import geometry_of_meta, label_orientation
from dinomix_monai.volumes.nifti_file import nifti_stem

__all__ = [
    "Image",
    "Window",
    "as_image",
    "channel_files",
    "channel_windows",
    "first_file",
    "image_name",
    "joined_channels",
    "packed_channels",
    "split_names",
]

Window = tuple[float, float] | None
"""Intensities of a channel that become 0 and 1; ``None`` for percentiles of each image."""

Image = str | PathLike | Sequence[str | PathLike]
"""A file, or those of the channels."""


def channel_files(image: Image) -> tuple[str, ...]:
    """
    The files of an image, one for each channel.

    Example:
        >>> channel_files("ct.nii"), channel_files(["t1.nii", "t2.nii"])
        (('ct.nii',), ('t1.nii', 't2.nii'))
    """
    return tuple(str(file) for file in ensure_tuple(image))


def as_image(files: Image) -> str | list[str]:
    """The files of an image as a data list has them: one alone as it is, several as a list."""
    found = channel_files(files)
    return found[0] if len(found) == 1 else list(found)


def packed_channels(file: str | PathLike) -> int:
    """How many volumes a NIfTI file has along its fourth axis; 1 also of one that cannot be read."""
    try:
        shape = nib.Nifti1Image.from_filename(file).shape
    except (OSError, ImageFileError):
        return 1
    return shape[3] if len(shape) == 4 else 1


def first_file(image: Image) -> str:
    """The file that an image is called by: its only one, or that of its first channel."""
    return channel_files(image)[0]


def image_name(image: Image) -> str:
    """
    What an image is called: the path of its file, of several without what their names differ in.

    Example:
        >>> image_name(["a/brats_1_t1.nii.gz", "a/brats_1_t2.nii.gz"])
        'a/brats_1.nii.gz'
    """
    files = [Path(file) for file in channel_files(image)]
    name, _ = split_names([nifti_stem(file) for file in files])
    return str(files[0].with_name(f"{name}.nii.gz")) if len(files) > 1 and name else str(files[0])


def split_names(names: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """
    The words that all names begin with, and what is left of each.

    Example:
        >>> split_names(["BraTS_001_t1", "BraTS_001_t1ce", "BraTS_001_flair"])
        ('BraTS_001', ('t1', 't1ce', 'flair'))
    """
    words = [re.split(r"[-_. ]+", name) for name in names]
    shared = sum(1 for _ in itertools.takewhile(lambda same: len(set(same)) == 1, zip(*words)))
    return "_".join(words[0][:shared]), tuple("_".join(parts[shared:]) for parts in words)


def channel_windows(window: Sequence | None, channels: int | None = None) -> list[Window]:
    """
    The window of each channel.

    Args:
        window: two intensities, the first one below the second, or ``None``, for all channels; or a list with either of
            these for each.
        channels: how many there are; ``None`` to take what is given.

    Raises:
        ValueError: When it is neither, or there are as many windows as there are no channels.

    Example:
        >>> channel_windows([-160, 240], 2)
        [(-160.0, 240.0), (-160.0, 240.0)]
        >>> channel_windows([[-160, 240], None], 2)
        [(-160.0, 240.0), None]
    """
    is_list = isinstance(window, Sequence) and not isinstance(window, str)
    given: list[Any] = list(window) if is_list else [window]  # type: ignore[arg-type]
    if is_list and given and all(_is_number(end) for end in given):
        given = [window]
    elif is_list and channels is not None and len(given) != channels:
        raise ValueError(
            f"intensity_window must have an entry for each of {channels} channels, or be one for all, got {window}."
        )
    if not given or not all(one is None or _is_window(one) for one in given):
        raise ValueError(
            "intensity_window must be two intensities, the first one below the second, or null for the percentiles of "
            f"each image; or a list with one of these for each channel, got {window}."
        )
    windows: list[Window] = [None if one is None else (float(one[0]), float(one[1])) for one in given]
    return windows * (channels or 1) if len(windows) == 1 else windows


def _is_window(window: Any) -> bool:
    is_list = isinstance(window, Sequence) and not isinstance(window, str)
    return is_list and len(window) == 2 and all(map(_is_number, window)) and window[0] < window[1]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def joined_channels(volumes: Sequence[MetaTensor]) -> MetaTensor:
    """
    One image of several channels.

    A channel may be stored in another orientation than the first one, at the same places, and is turned.

    Args:
        volumes: the channels, each of shape (1, H, W, D), as they were loaded.

    Returns:
        Shape (C, H, W, D), in the place of the first one.

    Raises:
        ValueError: When a channel does not lie on the grid of the first one.
    """
    first, *others = volumes
    target, parts = geometry_of_meta(first.meta), [first.as_tensor()]
    for other in others:
        source = geometry_of_meta(other.meta)
        orientation = label_orientation(source, target)
        if orientation is None:
            name = ImageMetaKey.FILENAME_OR_OBJ
            raise ValueError(
                f"All channels of an image must have the voxels of its first one, {first.meta.get(name)}, got "
                f"{other.meta.get(name)}, which {source.difference_from_image(target, 'the first one')}. Resample it."
            )
        turned = apply_orientation(other.as_tensor().numpy()[0], orientation)
        parts.append(torch.from_numpy(np.ascontiguousarray(turned))[None].to(first.dtype))
    return MetaTensor(torch.cat(parts), meta=first.meta)
