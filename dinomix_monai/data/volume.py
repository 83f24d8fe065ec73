"""NIfTI volumes, opened with distrust and read a piece at a time."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import Opener
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike

__all__ = [
    "MOST_VOXELS",
    "ImageValues",
    "LabelValues",
    "VolumeError",
    "image_values",
    "is_single_volume",
    "label_values",
    "open_volume",
    "resampled_shape",
]

MOST_VOXELS = 2**31
"""Beyond this, 8 GiB of a resampled volume, a header lies about its voxels or their size."""

_DEFLATE_RATIO = 1032
"""Bytes that one byte of a gzip file can stand for at most."""

_PIECE = 2**18
"""Voxels that are held in memory at a time."""

# What nibabel and gzip raise on bytes that are not what they should be.
_DAMAGE = (HeaderDataError, EOFError, OSError, OverflowError, ValueError, zlib.error)


class VolumeError(ValueError):
    """
    A file that is no volume to train with.

    Args:
        problem: what is wrong, as a phrase whose subject is the file.
        remedy: what to do about it, as a sentence.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.problem = problem
        self.remedy = remedy


class ImageValues(NamedTuple):
    """
    What the voxels of an image come down to.

    Args:
        low: least finite value; infinity where there is none.
        high: greatest finite value; minus infinity where there is none.
        not_finite: number of voxels that are NaN or infinite.
        outside: share of all voxels that lie outside of the window; 0 without a window.
        digest: SHA-256 of shape and values, the same for the same volume however it is stored.
    """

    low: float
    high: float
    not_finite: int
    outside: float
    digest: str


class LabelValues(NamedTuple):
    """
    What the voxels of a label map come down to.

    Args:
        classes: classes that it has.
        strays: number of voxels that are no class.
        low: least value of such a voxel; NaN where there is none.
        high: greatest value of such a voxel; NaN where there is none.
    """

    classes: frozenset[int]
    strays: int
    low: float
    high: float


def resampled_shape(lengths: ArrayLike, spacing: ArrayLike, target: ArrayLike) -> np.ndarray:
    """
    The shape that MONAI's ``Spacingd`` gives, before it is rounded.

    Args:
        lengths: voxels along each axis.
        spacing: voxel size along each axis, in mm.
        target: the voxel size to resample to; where it is not above 0, the present one stays.
    """
    present, wanted = np.asarray(spacing, dtype=float), np.asarray(target, dtype=float)
    return (np.asarray(lengths) - 1) * present / np.where(wanted > 0, wanted, present) + 1


def is_single_volume(shape: Sequence[int]) -> bool:
    """Whether a shape is that of one volume; a fourth axis of length 1 is common, and more MONAI does not take."""
    return len(shape) in (3, 4) and all(length == 1 for length in shape[3:])


def open_volume(path: str | Path) -> nib.Nifti1Pair:
    """
    Opens a NIfTI file of one volume with one channel; of the voxels nothing is read.

    Raises:
        VolumeError: When it is no such file, or shorter than its header says; what is gzipped shows that when it is
            read, and here if it could not be so long however well it is packed.
    """
    path = Path(path)
    if path.is_dir():
        raise VolumeError("is a folder", "Name the NIfTI file (.nii, .nii.gz) itself.")
    if not path.is_file():
        raise VolumeError("does not exist", "Put the file there, or take the case out of the list.")
    if not path.name.endswith((".nii", ".nii.gz")):
        raise VolumeError("is not named .nii or .nii.gz", "Convert it to NIfTI.")
    try:
        volume = nib.load(path)  # type: ignore[attr-defined]  # nibabel exports it at run time
    except ImageFileError:
        volume = None
    except _DAMAGE as error:
        raise VolumeError("has a header that cannot be read", "Copy or export it anew.") from error
    if not isinstance(volume, nib.Nifti1Pair):
        raise VolumeError("is not NIfTI, whatever its name", "Convert it to NIfTI.")
    proxy: Any = volume.dataobj
    _check_shape(volume.shape, proxy.dtype)
    needed = proxy.offset + math.prod(volume.shape) * proxy.dtype.itemsize
    size = path.stat().st_size
    if path.suffix == ".nii" and size < needed:
        raise VolumeError(f"is cut short, {size} of {needed} bytes", "Copy or export it anew.")
    if size * _DEFLATE_RATIO < needed:
        raise VolumeError(f"is cut short, {size} packed bytes cannot be {needed}", "Copy or export it anew.")
    return volume


def image_values(volume: nib.Nifti1Pair, window: Sequence[float] | None = None) -> ImageValues:
    """
    Reads an image once.

    Args:
        volume: image, from :func:`open_volume`.
        window: least and greatest intensity that count as inside.

    Raises:
        VolumeError: When the file ends early or its checksum is wrong.
    """
    least, greatest = window or (-math.inf, math.inf)
    low, high, not_finite, outside = math.inf, -math.inf, 0, 0
    digest = hashlib.sha256(repr(tuple(map(int, volume.shape[:3]))).encode())
    for values in _read(volume):
        digest.update(values.data)
        finite = values[np.isfinite(values)]
        low, high = finite.min(initial=low), finite.max(initial=high)
        not_finite += values.size - finite.size
        outside += np.count_nonzero((finite < least) | (finite > greatest))
    return ImageValues(float(low), float(high), not_finite, outside / math.prod(volume.shape), digest.hexdigest())


def label_values(volume: nib.Nifti1Pair, num_classes: int) -> LabelValues:
    """
    Reads a label map once.

    Args:
        volume: label map, from :func:`open_volume`.
        num_classes: classes are whole numbers from 0 to below this.

    Raises:
        VolumeError: When the file ends early or its checksum is wrong.
    """
    is_present = np.zeros(num_classes, dtype=bool)
    low, high, strays = math.nan, math.nan, 0
    for values in _read(volume):
        is_class = (values >= 0) & (values < num_classes) & (values == np.rint(values))
        is_present[values[is_class].astype(np.intp)] = True
        stray = values[~is_class]
        strays += stray.size
        # Of those that are numbers, if any is.
        low, high = np.fmin.reduce(stray, initial=low), np.fmax.reduce(stray, initial=high)
    return LabelValues(frozenset(np.flatnonzero(is_present).tolist()), strays, float(low), float(high))


def _check_shape(shape: Sequence[int], dtype: np.dtype) -> None:
    if not is_single_volume(shape):
        raise VolumeError(
            f"has the shape {_times(shape)}", "Split it: each file must be one volume of three axes with one channel."
        )
    if min(shape) < 1:
        raise VolumeError(
            f"is empty, its shape is {_times(shape)}", "Export it anew, or take the case out of the list."
        )
    if dtype.fields:
        raise VolumeError(f"has {len(dtype.fields)} channels", "Keep one of them.")
    if dtype.kind == "c":
        raise VolumeError("has complex values", "Keep their magnitude.")


def _read(volume: nib.Nifti1Pair) -> Iterator[np.ndarray]:
    """Values of the voxels as float32, in the order of the file; the whole volume is never in memory."""
    proxy: Any = volume.dataobj
    dtype, voxels = proxy.dtype, math.prod(proxy.shape)
    try:
        with Opener(proxy.file_like) as file:
            file.seek(proxy.offset)
            for start in range(0, voxels, _PIECE):
                count = min(_PIECE, voxels - start)
                # A file that ends early gives fewer bytes, which are too few for the values that are asked for.
                raw = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
                is_scaled = (proxy.slope, proxy.inter) != (1, 0)
                with np.errstate(over="ignore", invalid="ignore"):
                    values = (raw * proxy.slope + proxy.inter if is_scaled else raw).astype(np.float32)
                yield values
            # Only at its end does a gzip file compare its checksum.
            while file.read(_PIECE):
                pass
    except _DAMAGE as error:
        raise VolumeError("is cut short or damaged", "Copy or export it anew.") from error


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
