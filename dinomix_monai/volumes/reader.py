"""MONAI's reader of NIfTI files, with this package's rule for where they lie."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import Any

import nibabel as nib
import numpy as np
from monai.data import NibabelReader
from monai.utils import ensure_tuple

from dinomix_monai.volumes.geometry import read_geometry
from dinomix_monai.volumes.nifti_file import is_nifti_name, open_volume, voxels_of
from dinomix_monai.volumes.volume_error import VolumeError

__all__ = ["VolumeReader"]


class VolumeReader(NibabelReader):
    """
    ``monai.data.NibabelReader`` that places a volume by :func:`dinomix_monai.volumes.read_geometry`.

    MONAI's corrects headers by a rule of its own, so that a scan may come to lie elsewhere than for all who read its
    affine. What this one cannot place without doubt it refuses, or places with a warning. Voxels come in single
    precision, and are never held in double precision as a whole.

    Args:
        **kwargs: see ``monai.data.NibabelReader``.

    Raises:
        ValueError: From ``read``, when a file is not NIfTI of one volume or its header contradicts itself; from
            ``get_data``, when it ends early or its checksum is wrong.
    """

    def verify_suffix(self, filename: Sequence[str | os.PathLike] | str | os.PathLike) -> bool:
        """Whether these are names of NIfTI files, in letters of any case."""
        return all(is_nifti_name(name) for name in ensure_tuple(filename))

    def read(
        self, data: Sequence[str | os.PathLike] | str | os.PathLike, **kwargs: Any
    ) -> nib.Nifti1Pair | list[nib.Nifti1Pair]:
        """
        Opens files.

        Args:
            data: one file, or several that become channels of one image.
            **kwargs: not used, since files are opened by :func:`dinomix_monai.volumes.open_volume`.
        """
        self.filenames = ensure_tuple(data)
        volumes = [self._opened(name) for name in self.filenames]
        return volumes if len(volumes) > 1 else volumes[0]

    def _opened(self, name: str | os.PathLike) -> nib.Nifti1Pair:
        try:
            volume = open_volume(name)
        except VolumeError as error:
            raise error.of(name) from error
        if (doubt := read_geometry(volume.header).doubt) is not None:
            warnings.warn(f"{name} {'. '.join(doubt)}", stacklevel=2)
        return volume

    def _get_affine(self, img: nib.Nifti1Pair) -> np.ndarray:
        return read_geometry(img.header).affine.copy()

    def _get_array_data(self, img: nib.Nifti1Pair, filename: str | os.PathLike) -> np.ndarray:
        # Neither is read from the file by nibabel here: what is to go to a GPU, and what has been turned in memory.
        if self.to_gpu or not nib.is_proxy(img.dataobj):
            return super()._get_array_data(img, filename)
        try:
            return voxels_of(img)
        except VolumeError as error:
            raise error.of(filename) from error
