"""The folder of scans and labels, as MONAI Label lists it."""

from __future__ import annotations

import fnmatch
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from dinomix_monai.data.scan_folder import left_out
from dinomix_monai.label.checked_labels import CheckedLabels
from dinomix_monai.label.label_door import LabelDoor
from dinomix_monai.volumes import VolumeError, is_label_map, is_nifti_name, nifti_stem, open_volume

__all__ = ["ScanStore"]

logger = logging.getLogger(__name__)


class ScanStore(CheckedLabels):
    """
    ``LocalDatastore`` that takes nothing for a scan which is none, and no label that nobody can learn from.

    MONAI Label goes by the end of a name alone, in small letters. Hidden files, as macOS leaves them in archives
    (``._scan.nii.gz``), and label maps that this package wrote beside their scans have such names. What a folder has
    beside scans is left out, and the log names it.

    Args:
        studies: folder of the scans.
        extensions: patterns of their names.
        class_names: names by label value, background first.
        **kwargs: see ``LocalDatastore``.
    """

    def __init__(self, studies: str, extensions: Sequence[str], class_names: Sequence[str], **kwargs: bool) -> None:
        self.door = LabelDoor(class_names)
        super().__init__(studies, extensions=tuple(extensions), **kwargs)
        own = {"labels/", Path(self._datastore_config_path).name}
        if others := [name for name in left_out(Path(studies), self._files()) if name not in own]:
            logger.warning("Left out of %s (no scan, or a second of its name): %s.", studies, ", ".join(others))

    def _list_files(self, path: str, patterns: Sequence[str]) -> dict[str, str]:
        names = [name for name in os.listdir(path) if any(fnmatch.fnmatch(name.lower(), each) for each in patterns)]
        is_of_scans = Path(path) == Path(self._datastore.image_path())
        return {name: name for name in names if not _is_none(Path(path) / name, is_of_scans)}

    def _to_id(self, file: str) -> tuple[str, str]:
        if not is_nifti_name(file):
            return super()._to_id(file)
        stem = nifti_stem(file)
        return stem, file[len(stem) :]

    def _remove_non_existing(self) -> int:
        count = super()._remove_non_existing()
        # What another version, or MONAI Label itself, has listed.
        gone = [name for name, file in zip(self._datastore.objects, self._files()) if _is_none(file, is_scan=True)]
        for name in gone:
            del self._datastore.objects[name]
        return count + len(gone)

    def _files(self) -> list[Path]:
        """Of all scans that are listed."""
        folder = Path(self._datastore.image_path())
        return [folder / f"{name}{listed.image.ext}" for name, listed in self._datastore.objects.items()]


def _is_none(path: Path, is_scan: bool) -> bool:
    """Whether a file with the name of a scan or a label is none."""
    try:
        return path.name.startswith(".") or (is_scan and is_label_map(open_volume(path)))
    except VolumeError:
        return False  # what is wrong with it is said where it is used
