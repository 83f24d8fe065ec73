"""NIfTI volumes, opened with distrust and read a piece at a time."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.openers import Opener
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling
from nibabel.wrapstruct import WrapStructError

from dinomix_monai.core.text import by
from dinomix_monai.volumes.geometry import read_geometry
from dinomix_monai.volumes.volume_error import VolumeError

__all__ = [
    "BY_MODEL",
    "LABEL_INTENT",
    "MOST_VOXELS",
    "UNCERTAINTY",
    "ImageValues",
    "LabelValues",
    "image_values",
    "is_answer",
    "is_by_model",
    "is_class",
    "is_label_map",
    "is_nifti_name",
    "is_single_volume",
    "label_values",
    "nifti_stem",
    "open_volume",
    "voxels_of",
]

LABEL_INTENT = 1002
"""NIfTI's code for the voxels of a label map, by which it is told from a scan."""

UNCERTAINTY = b"uncertainty"
"""The name of the intent of an uncertainty map, likewise."""

BY_MODEL = b"by a model"
"""The name of the intent of a label map that a model has drawn. Viewers do not keep it when a person saves the map."""

_SUFFIXES = (".nii.gz", ".nii")

_GZIP = b"\x1f\x8b"
_HEADER_SIZES = {
    size.to_bytes(4, order): kind
    for size, kind in ((348, nib.Nifti1Image), (540, nib.Nifti2Image))
    for order in ("little", "big")
}
"""First bytes of a gzip file, and of NIfTI-1 and NIfTI-2 files."""

MOST_VOXELS = 2**31
"""Beyond this, 8 GiB of a resampled volume, a header lies about its voxels or their size."""

_DEFLATE_RATIO = 1032
"""Bytes that one byte of a gzip file can stand for at most."""

_PIECE = 2**18
"""Voxels that are held in memory at a time."""

_SLICES = 16
"""Slices of which the voxels of one place lie in one line of a CPU's cache, 64 bytes, as float32."""

# What nibabel and gzip raise on bytes that are not what they should be.
_DAMAGE = (HeaderDataError, EOFError, OSError, OverflowError, ValueError, zlib.error)


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
        voxels: number of voxels of each class, background first.
        strays: number of voxels that are no class.
        low: least value of such a voxel; NaN where there is none.
        high: greatest value of such a voxel; NaN where there is none.
    """

    voxels: tuple[int, ...]
    strays: int
    low: float
    high: float

    @property
    def classes(self) -> frozenset[int]:
        """Classes that it has."""
        return frozenset(value for value, count in enumerate(self.voxels) if count)


def is_single_volume(shape: Sequence[int]) -> bool:
    """Whether a shape is that of one volume; a fourth axis of length 1 is common, and more MONAI does not take."""
    return len(shape) in (3, 4) and all(length == 1 for length in shape[3:])


def is_nifti_name(path: str | Path) -> bool:
    """Whether a file has the name of a NIfTI file, in letters of any case."""
    return Path(path).name.lower().endswith(_SUFFIXES)


def nifti_stem(path: str | Path) -> str:
    """
    The name of a file without ``.nii`` or ``.nii.gz``.

    Example:
        >>> nifti_stem("scans/1.2.840.NII.GZ")
        '1.2.840'
    """
    name = Path(path).name
    suffix = next((suffix for suffix in _SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(suffix)]


def is_class(values: np.ndarray, num_classes: int) -> np.ndarray:
    """For each value, whether it is a whole number from 0 to below ``num_classes``."""
    return (values >= 0) & (values < num_classes) & (values == np.rint(values))


def is_label_map(volume: nib.Nifti1Pair) -> bool:
    """Whether the header says so, as that of each label map does which this package writes."""
    return int(volume.header["intent_code"]) == LABEL_INTENT


def is_answer(volume: nib.Nifti1Pair) -> bool:
    """Whether it is no scan but what this package has made of one: a label map or an uncertainty map."""
    return is_label_map(volume) or _intent_name(volume) == UNCERTAINTY


def is_by_model(volume: nib.Nifti1Pair) -> bool:
    """Whether it is a label map that a model has drawn and, as far as its header tells, no person has saved since."""
    return _intent_name(volume) == BY_MODEL


def _intent_name(volume: nib.Nifti1Pair) -> bytes:
    return volume.header["intent_name"].tobytes().rstrip(b"\0")


def open_volume(path: str | os.PathLike) -> nib.Nifti1Pair:
    """
    Opens a NIfTI file of one volume with one channel; of the voxels nothing is read.

    Raises:
        VolumeError: When it is no such file, its header contradicts itself (see
            :func:`dinomix_monai.volumes.read_geometry`), or it is shorter than its header says; what is gzipped shows
            that when it is read, and here if it could not be so long however well it is packed.
    """
    path = Path(path)
    if path.is_dir():
        raise VolumeError("is a folder", "Name the NIfTI file (.nii, .nii.gz) itself.")
    if not path.is_file():
        raise VolumeError("does not exist", "Put the file there, or take the case out of the list.")
    if not is_nifti_name(path):
        raise VolumeError("is not named .nii or .nii.gz", "Convert it to NIfTI.")
    kind = _HEADER_SIZES.get(_unpacked_start(path))
    if kind is None:
        raise VolumeError("is not NIfTI, whatever its name", "Convert it to NIfTI.")
    try:
        # Not by ``load``, which knows names with letters of one case alone.
        volume = kind.from_file_map({"image": FileHolder(str(path))})
    except (*_DAMAGE, ImageFileError, WrapStructError) as error:
        raise VolumeError("has a header that cannot be read", "Copy or export it anew.") from error
    proxy: Any = volume.dataobj
    _check_shape(volume.shape, proxy.dtype)
    _check_pixdim(path, volume.header)
    read_geometry(volume.header)
    needed = proxy.offset + math.prod(volume.shape) * proxy.dtype.itemsize
    size = path.stat().st_size
    if path.suffix.lower() == ".nii" and size < needed:
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
    voxels = np.zeros(num_classes, dtype=np.int64)
    low, high, strays = math.nan, math.nan, 0
    for values in _read(volume):
        has_class = is_class(values, num_classes)
        voxels += np.bincount(values[has_class].astype(np.intp), minlength=num_classes)
        stray = values[~has_class]
        strays += stray.size
        # Of those that are numbers, if any is.
        low, high = np.fmin.reduce(stray, initial=low), np.fmax.reduce(stray, initial=high)
    return LabelValues(tuple(voxels.tolist()), strays, float(low), float(high))


def voxels_of(volume: nib.Nifti1Pair) -> np.ndarray:
    """
    Reads all voxels once, and holds them in no other precision than that of the result.

    Args:
        volume: image or label map, from :func:`open_volume`.

    Returns:
        float32 array of the shape of the volume, in C order, which differs from that of the file.

    Raises:
        VolumeError: When the file ends early or its checksum is wrong.
    """
    width, height, depth = volume.shape[:3]
    voxels = np.empty((width, height, depth), dtype=np.float32)
    slices, first = _read(volume, width * height), 0
    while some := list(islice(slices, _SLICES)):
        voxels[..., first : first + len(some)] = np.stack(some).reshape(-1, height, width).T
        first += len(some)
    return voxels.reshape(volume.shape)


def _unpacked_start(path: Path) -> bytes:
    """First bytes of the file, which is packed as its name says, and once."""
    with path.open("rb") as file:
        start = file.read(4)
    if not start:
        raise VolumeError("is an empty file", "Copy or export it anew.")
    is_packed, is_named_so = start.startswith(_GZIP), path.name.lower().endswith(".gz")
    if is_packed and not is_named_so:
        raise VolumeError("is packed with gzip, whatever its name", "Rename it to .nii.gz.")
    if is_named_so and start in _HEADER_SIZES:
        raise VolumeError("is not packed, whatever its name", "Rename it to .nii.")
    if is_packed:
        try:
            with gzip.open(path) as content:
                start = content.read(4)
        except _DAMAGE as error:
            raise VolumeError("is cut short or damaged", "Copy or export it anew.") from error
        if start.startswith(_GZIP):
            raise VolumeError("is gzip of gzip", "Unpack it once.")
    return start


def _check_shape(shape: Sequence[int], dtype: np.dtype) -> None:
    text = by(shape)
    if len(shape) < 3:
        raise VolumeError(
            f"has {len(shape)} axes ({text})", "Stack its slices: each file must be one volume of three axes."
        )
    if math.prod(shape[4:]) > 1:
        raise VolumeError(f"has several values for each voxel ({text})", "Keep one of them.")
    if not is_single_volume(shape):
        raise VolumeError(
            f"has the shape {text}",
            "Split it: each file must be one volume of three axes. Channels go into a file each.",
        )
    if min(shape) < 1:
        raise VolumeError(f"is empty, its shape is {text}", "Export it anew, or take the case out of the list.")
    if dtype.fields:
        raise VolumeError(f"has {len(dtype.fields)} channels", "Write each to a file of its own, or keep one of them.")
    if dtype.kind == "c":
        raise VolumeError("has complex values", "Keep their magnitude.")


def _check_pixdim(path: Path, header: nib.Nifti1Header) -> None:
    # As it stands in the file: nibabel corrects what it cannot use, a size of 0 to one of 1 mm.
    with Opener(str(path)) as file:
        sizes = type(header).from_fileobj(file, check=False)["pixdim"][1:4]
    if not (sizes > 0).all():
        raise VolumeError(f"has voxels of {by(sizes)} mm by its pixdim", "Write their size in mm into its header.")


def _read(volume: nib.Nifti1Pair, piece: int | None = None) -> Iterator[np.ndarray]:
    """Values of so many voxels at a time as float32, in the order of the file, scaled as nibabel scales them."""
    proxy: Any = volume.dataobj
    dtype, voxels, piece = proxy.dtype, math.prod(proxy.shape), piece or _PIECE
    try:
        with Opener(proxy.file_like) as file:
            file.seek(proxy.offset)
            for start in range(0, voxels, piece):
                count = min(piece, voxels - start)
                # A file that ends early gives fewer bytes, which are too few for the values that are asked for.
                raw = np.frombuffer(file.read(count * dtype.itemsize), dtype, count)
                with np.errstate(over="ignore", invalid="ignore"):
                    values = apply_read_scaling(raw, proxy.slope, proxy.inter).astype(np.float32)
                yield values
            # Only at its end does a gzip file compare its checksum.
            while file.read(_PIECE):
                pass
    except _DAMAGE as error:
        raise VolumeError("is cut short or damaged", "Copy or export it anew.") from error
