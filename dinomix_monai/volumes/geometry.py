"""Where the voxels of a NIfTI file lie: one rule for reading, checking and writing."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from monai.utils.enums import MetaKeys
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import inv_ornt_aff, io_orientation
from nibabel.spatialimages import HeaderDataError
from numpy.typing import ArrayLike

from dinomix_monai.core.text import by
from dinomix_monai.volumes.volume_error import VolumeError

__all__ = [
    "Geometry",
    "distances_mm",
    "geometry_of_meta",
    "header_of_meta",
    "label_orientation",
    "read_geometry",
    "resampled_shape",
    "write_placement",
]

_MM = {1: 1000.0, 3: 0.001}
"""Millimeters in the units that a header may name; in all others its lengths are in mm."""

_SPACING_MM = (0.05, 50.0)
"""Beyond this a voxel size is in another unit, or was never measured."""

_WRONG, _ROUNDED = 1e-2, 1e-3
"""Part of a voxel size by which sform and pixdim may differ before one is wrong, and before it is worth a word."""

_SHIFT, _TURN = 0.1, 1.3e-3
"""Part of a voxel by which two grids may lie apart and still be the same, and the angle in radians by which a
quaternion in single precision may be off: its scalar part is the root of what the squares of the others leave of 1."""

_UNKNOWN = "does not say how the patient lies (sform and qform have code 0)"

_PLACEMENT = (
    *("sform_code", "srow_x", "srow_y", "srow_z"),
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
)
_SPATIAL_UNITS = 7
"""Bits of ``xyzt_units``; the others are units of time."""


class Geometry(NamedTuple):
    """
    Where the voxels of a volume lie.

    Args:
        forms: affines from voxels to mm (right, front, head), each of shape (4, 4). The first one counts; another is
            that of a coded qform beside a coded sform, as in a scan that was registered.
        shape: voxels along the three axes.
        is_known: whether the file says how the patient lies.
        doubt: what is odd about it and may yet be right, as a phrase whose subject is the file, and what to do about
            it; ``None`` for nothing.
    """

    forms: Sequence[np.ndarray]
    shape: tuple[int, ...]
    is_known: bool = True
    doubt: tuple[str, str] | None = None

    @property
    def affine(self) -> np.ndarray:
        """The affine that counts."""
        return self.forms[0]

    @property
    def on_body(self) -> tuple[np.ndarray, np.ndarray]:
        """Voxels and voxel sizes in mm along R, A and S."""
        # For each axis of the body, the axis of the file.
        axes = np.argsort(io_orientation(self.affine)[:, 0])
        return np.array(self.shape)[axes], voxel_sizes(self.affine)[axes]

    def resampled(self, spacing_mm: Sequence[float]) -> list[int]:
        """
        The shape that MONAI's ``Orientationd`` to RAS and ``Spacingd`` give.

        Args:
            spacing_mm: voxel size along R, A and S; what is not above 0 is the volume's own.
        """
        return np.round(resampled_shape(*self.on_body, spacing_mm)).astype(int).tolist()

    def difference_from_image(self, image: Geometry, name: str = "its image") -> str:
        """
        How the grid of a label map differs from that of its image, as a phrase whose subject is the file.

        Args:
            image: where the image lies.
            name: what the phrase calls it.
        """
        if self.shape != image.shape:
            return f"has {by(self.shape)} voxels and {name} {by(image.shape)}"
        if self.is_known != image.is_known:
            return f"says how the patient lies and {name} does not" if self.is_known else _UNKNOWN
        return f"lies up to {distances_mm(self.affine, image.affine, self.shape).max():.3g} mm off {name}"


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


def read_geometry(header: nib.Nifti1Header) -> Geometry:
    """
    Where a header says that its voxels lie, in mm whatever its units.

    The sform counts if it has a code, else the qform if it has one. Without either the patient's orientation is
    unknown, and the axes are taken to run to the left, to the front and to the head, as nibabel and SPM take them.
    MONAI's reader has another rule: where ``pixdim`` differs from a coded sform by 1e-5, it takes the qform, even one
    without a code.

    Args:
        header: of a NIfTI file.

    Raises:
        VolumeError: When what counts is no affine, its voxels are of an absurd size, ``pixdim`` contradicts it, or
            sform and qform have the same code and lie apart.
    """
    shape = tuple(map(int, header.get_data_shape()[:3]))
    unit = _MM.get(int(header["xyzt_units"]) & _SPATIAL_UNITS, 1.0)
    to_mm = np.array([[unit], [unit], [unit], [1.0]])
    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    coded = {name: to_mm * _form(header, name) for name, code in codes.items() if code > 0}
    pixdim = unit * np.asarray(header["pixdim"][1:4], dtype=float)
    if not coded:
        base = to_mm * header.get_base_affine()
        _check_sizes(base)
        doubt = f"{_UNKNOWN}: its axes are taken to run to left, front and head"
        return Geometry([base], shape, False, (doubt, "Write the true sform, with a code above 0, into its header."))
    forms = list(coded.values())
    for form in forms:
        _check_sizes(form)
    sizes = voxel_sizes(forms[0])
    difference = (np.abs(pixdim - sizes) / sizes).max()
    sizes_text = f"has voxels of {by(sizes)} mm by its {next(iter(coded))} and of {by(pixdim)} mm by its pixdim"
    if not difference <= _WRONG:
        raise VolumeError(sizes_text, "Write the true size into both.")
    if len(forms) > 1 and codes["sform"] == codes["qform"]:
        apart = distances_mm(forms[0], forms[1], shape)
        if not (apart <= _tolerance_mm(forms[0], shape)).all():
            raise VolumeError(
                f"lies in two places, {apart.max():.3g} mm apart: its sform and its qform have the same code",
                "Correct the one that is wrong, or give it the code 0.",
            )
    if difference > _ROUNDED:
        return Geometry(forms, shape, doubt=(f"{sizes_text}; the former count", "Write the true size into both."))
    return Geometry(forms, shape)


def geometry_of_meta(meta: Mapping[str, Any]) -> Geometry:
    """
    Where a volume lies that MONAI has loaded, as :func:`read_geometry` has it.

    Args:
        meta: what a ``MetaTensor`` of it carries. Of a file that is not NIfTI, its affine and its shape count.
    """
    header = header_of_meta(meta)
    if header is not None:
        return read_geometry(header)
    affine = np.asarray(meta["original_affine"], dtype=float)
    return Geometry([affine], tuple(int(side) for side in meta["spatial_shape"]))


def header_of_meta(meta: Mapping[str, Any]) -> nib.Nifti1Header | None:
    """The NIfTI header that a ``MetaTensor`` carries in its ``meta``; ``None`` where the file was of another format."""
    # MONAI's Spacing writes to ``pixdim`` and keeps what it was.
    sources = {name: name for name in (*_PLACEMENT, "dim", "xyzt_units")} | {"pixdim": MetaKeys.ORIGINAL_PIXDIM}
    if any(source not in meta for source in sources.values()):
        return None
    header = nib.Nifti1Header()
    for name, source in sources.items():
        header[name] = np.asarray(meta[source])
    return header


def write_placement(source: nib.Nifti1Header, target: nib.Nifti1Header) -> None:
    """
    Lets a header place its voxels exactly as another one does: both forms, their codes, voxel sizes and units.

    What goes by the qform, as ITK's viewers may, then shows both volumes in one place, and so does what goes by the
    sform.
    """
    for name in _PLACEMENT:
        target[name] = source[name]
    target["pixdim"][:4] = source["pixdim"][:4]
    target["xyzt_units"] = int(source["xyzt_units"]) & _SPATIAL_UNITS


def label_orientation(label: Geometry, image: Geometry) -> np.ndarray | None:
    """
    How a label map must be turned to have the voxels of its image.

    A label map may be stored along other axes or in other directions than its image. It is on the image's grid all the
    same where its voxels lie at the very places of the image's. Where a file has two forms, one of each that agree will
    do: viewers differ in the one that they go by.

    Returns:
        For each axis of the label, the axis of the image and the direction, as nibabel's ``apply_orientation`` takes
        it; ``None`` where the label is not on the grid of the image.
    """
    for target, source in itertools.product(image.forms, label.forms):
        to_image = np.linalg.solve(target, source)[:3, :3]
        axes = np.abs(to_image).argmax(axis=0)
        if sorted(axes) != [0, 1, 2] or tuple(image.shape[axis] for axis in axes) != label.shape:
            continue
        orientation = np.column_stack([axes, np.sign(to_image[axes, range(3)])])
        apart = distances_mm(source @ inv_ornt_aff(orientation, label.shape), target, image.shape)
        if (apart <= _tolerance_mm(target, image.shape)).all():
            return orientation
    return None


def distances_mm(affine: np.ndarray, other: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """How far the eight corners of a volume lie apart by two affines, in mm."""
    return np.linalg.norm(apply_affine(affine, _corners(shape)) - apply_affine(other, _corners(shape)), axis=1)


def _form(header: nib.Nifti1Header, name: str) -> np.ndarray:
    try:
        return header.get_sform() if name == "sform" else header.get_qform()
    except (HeaderDataError, ValueError) as error:
        raise VolumeError(f"has a {name} that is none ({error})", "Write a valid one, or the code 0.") from error


def _check_sizes(affine: np.ndarray) -> None:
    # Of the directions alone, so that small voxels do not count as none.
    with np.errstate(divide="ignore", invalid="ignore"):
        is_regular = abs(np.linalg.det(affine[:3, :3] / voxel_sizes(affine))) > 1e-3
    if not (is_regular and np.isfinite(affine).all()):
        raise VolumeError("has a singular affine", "Write a valid sform or qform into its header.")
    sizes = voxel_sizes(affine)
    if not _SPACING_MM[0] <= sizes.min() <= sizes.max() <= _SPACING_MM[1]:
        raise VolumeError(f"has voxels of {by(sizes)} mm", "Write their size in mm into its header.")


def _tolerance_mm(affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """How far each corner may lie off, in mm: a wrong turn shows the more, the farther it is from the first voxel."""
    corners = apply_affine(affine, _corners(shape))
    return _SHIFT * voxel_sizes(affine).min() + _TURN * np.linalg.norm(corners - affine[:3, 3], axis=1)


def _corners(shape: Sequence[int]) -> list[tuple[int, ...]]:
    return list(itertools.product(*((0, side - 1) for side in shape)))
