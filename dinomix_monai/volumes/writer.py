"""Writing label maps."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError

from dinomix_monai.core.files import atomic_write
from dinomix_monai.volumes.geometry import header_of_meta, read_geometry, write_placement
from dinomix_monai.volumes.nifti_file import BY_MODEL, LABEL_INTENT, UNCERTAINTY, nifti_stem

__all__ = ["label_on_grid", "label_path", "label_volume", "uncertainty_volume", "write_volume"]


def label_volume(array: np.ndarray, affine: np.ndarray, meta: Mapping[str, Any]) -> nib.Nifti1Image:
    """
    A label map of a model in the place of its scan, however that says where it lies.

    On the grid of a NIfTI scan it takes over what the scan's header says of its place: sform and qform, their codes
    and the units. Elsewhere both forms have the affine and the code of a scanner, but for an affine with a shear, which
    a qform cannot have. Its intent is that of a label map, by which it is told from a scan, and the name of the intent
    tells it from label maps of people.

    Args:
        array: shape (H, W, D).
        affine: from its voxels to mm.
        meta: what the ``MetaTensor`` of the scan carries, as it was loaded.
    """
    source = header_of_meta(meta)
    if source is not None and _is_on_grid(array.shape, affine, source):
        volume = label_on_grid(array, source)
    else:
        volume = nib.Nifti1Image(array, affine)
        volume.header.set_xyzt_units("mm")
        volume.set_sform(affine, code="scanner")
        try:
            volume.set_qform(affine, code="scanner", strip_shears=False)
        except HeaderDataError:
            volume.set_qform(affine, code="unknown")
        volume.header["intent_code"] = LABEL_INTENT
    volume.header["intent_name"] = BY_MODEL
    return volume


def label_on_grid(array: np.ndarray, header: nib.Nifti1Header) -> nib.Nifti1Image:
    """
    A label map on the grid of a NIfTI file, in the place that the file's header says.

    Args:
        array: shape (H, W, D).
        header: of that file.
    """
    volume = nib.Nifti1Image(array, header.get_best_affine())
    write_placement(header, volume.header)
    volume.header["intent_code"] = LABEL_INTENT
    return volume


def uncertainty_volume(array: np.ndarray, label: nib.Nifti1Image) -> nib.Nifti1Image:
    """
    An uncertainty map on the grid of a label map; its intent says what it is, by which it is told from a scan.

    Args:
        array: numbers from 0 to 1, shape (H, W, D).
        label: see :func:`label_volume`.
    """
    volume = nib.Nifti1Image(array.astype(np.float32), label.affine)
    write_placement(label.header, volume.header)
    volume.header["intent_name"] = UNCERTAINTY
    return volume


def label_path(output_dir: str | Path, image: str | Path) -> Path:
    """
    File of a scan's label map.

    Example:
        >>> label_path("output", "scans/a.nii").as_posix()
        'output/a_seg.nii.gz'
    """
    return Path(output_dir).expanduser() / f"{nifti_stem(image)}_seg.nii.gz"


def write_volume(volume: nib.Nifti1Image, path: str | Path) -> Path:
    """
    Writes a label map or another volume: the same bytes for the same volume.

    Args:
        volume: see :func:`label_volume`.
        path: file to write, compressed if its name ends in ``.gz``; its folder is made if it is not there.

    Raises:
        OSError: When it cannot be written, as on a full disk.
    """
    path = Path(path)
    with atomic_write(path, is_shared=True) as file:
        if path.suffix == ".gz":
            with gzip.GzipFile("", "wb", 1, file, 0) as stream:
                volume.to_stream(stream)
        else:
            volume.to_stream(file)
    return path


def _is_on_grid(shape: tuple[int, ...], affine: np.ndarray, source: nib.Nifti1Header) -> bool:
    geometry = read_geometry(source)
    return geometry.shape == shape and np.allclose(geometry.affine, affine, atol=1e-4)
