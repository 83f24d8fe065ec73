"""Writing label maps at the end of an inference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from monai.utils import ImageMetaKey

from dinomix_monai.volumes import label_path, label_volume, write_volume

__all__ = ["SaveLabeld", "to_label_volume"]


def to_label_volume(label: MetaTensor) -> nib.Nifti1Image:
    """
    A label map as it is written, where its scan lies.

    Args:
        label: shape (1, H, W, D), on the grid of the scan's file; its ``meta`` is that of the scan.
    """
    array = label.as_tensor()[0].cpu().numpy().astype(np.uint8)
    return label_volume(array, np.asarray(label.affine.cpu(), dtype=float), label.meta)


class SaveLabeld(SaveImaged):
    """
    Writes label maps where their scans lie, by :func:`dinomix_monai.volumes.label_volume`; takes one sample.

    ``SaveImaged``, which it is for hosts that leave that out to write by themselves, marks every place as a scanner's,
    drops the second form that a scan may have and the third axis of a single slice, and on a full disk asks for
    libraries.

    Args:
        keys: label maps on the grid of the scans' files, whose ``meta`` is that of the scan.
        output_dir: folder of the files, ``NAME_seg.nii.gz`` for the scan ``NAME.nii`` or ``NAME.nii.gz``.
        allow_missing_keys: whether a key may be missing.

    Raises:
        OSError: When a file cannot be written, as on a full disk.
    """

    def __init__(self, keys: KeysCollection, output_dir: str | Path, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, output_dir=output_dir, allow_missing_keys=allow_missing_keys)
        self.output_dir = Path(output_dir)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with label maps of shape (1, H, W, D).
        """
        for key in self.key_iterator(dict(data)):
            label = data[key]
            write_volume(to_label_volume(label), label_path(self.output_dir, label.meta[ImageMetaKey.FILENAME_OR_OBJ]))
        return dict(data)
