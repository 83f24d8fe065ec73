"""Cases as a data set's publisher distributes them: NIfTI pairs, or h5 files of image and label."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.orientations import apply_orientation

from dinomix_monai.data.protocol import Protocol
from dinomix_monai.volumes import Geometry, VolumeError, is_class, label_orientation, open_volume, read_geometry

__all__ = ["RawCase", "find_cases"]


@dataclass(frozen=True)
class RawCase:
    """
    Files of a case, and how they are read. Arrays have the order of axes of the image's file, (x, y, z); a NIfTI label
    that is stored in another orientation, at the same places, is turned.

    Args:
        id: its name in the protocol.
        files: its ``image`` and, unless it is unlabeled, its ``label``; the same file twice for h5.
        axes: order of the axes in an h5 file, ``xyz`` or ``zyx``.
        spacing_mm: voxel size in x, y and z of an h5 file, which holds none.
    """

    id: str
    files: dict[str, Path]
    axes: str = "xyz"
    spacing_mm: Sequence[float] | None = None

    @property
    def affine(self) -> np.ndarray:
        """From voxels to mm: that of the NIfTI image, or nothing but the voxel size."""
        return self._geometry("image").affine if self.spacing_mm is None else np.diag([*self.spacing_mm, 1.0])

    @property
    def doubt(self) -> str | None:
        """What is odd about the place of the image and may yet be right, in sentences; reads the header alone."""
        doubt = None if self.spacing_mm is not None else self._geometry("image").doubt
        return None if doubt is None else f"{self.files['image']} {'. '.join(doubt)}"

    @property
    def is_known(self) -> bool:
        """Whether the image says how the patient lies; h5 files, which hold no affine, are taken to."""
        return self.spacing_mm is not None or self._geometry("image").is_known

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of ``image`` or ``label``; reads the header alone."""
        with _voxels(self.files[key], key) as voxels:
            return tuple(voxels.shape if self.axes == "xyz" else reversed(voxels.shape))

    def read(self, key: str) -> np.ndarray:
        """
        All voxels of ``image`` or ``label``, scaled as the file says.

        Raises:
            ValueError: When the file cannot be read, or a label does not lie on the grid of its image.
        """
        with _voxels(self.files[key], key) as stored:
            voxels = np.asanyarray(stored) if self.axes == "xyz" else np.asanyarray(stored).T
        if key != "label" or self.spacing_mm is not None:
            return voxels
        label, image = self._geometry("label"), self._geometry("image")
        orientation = label_orientation(label, image)
        if orientation is None:
            difference = label.difference_from_image(image)
            raise ValueError(f"label must lie on the grid of its image, got one that {difference}.")
        return apply_orientation(voxels, orientation)

    def problem(self, num_classes: int) -> str | None:
        """What is wrong with the case, in a sentence. Reads the label, if it has one, and the header of the image."""
        try:
            shape = self.shape("image")
            if len(shape) != 3:
                return f"image must be one volume of three axes, got shape {shape}."
            label = self.read("label") if "label" in self.files else None
        except ValueError as error:
            return str(error)
        if label is None:
            return None
        if label.shape != shape:
            return f"label must have the shape of the image, {shape}, got {label.shape}."
        if not is_class(label, num_classes).all():
            return f"label must have whole values from 0 to {num_classes - 1}, got {label.min()} to {label.max()}."
        return None

    def _geometry(self, key: str) -> Geometry:
        with _opened(self.files[key], key) as volume:
            return read_geometry(volume.header)


def find_cases(protocol: Protocol, raw_dir: str | Path, sections: Mapping[str, Sequence[str]]) -> list[RawCase]:
    """
    Finds the cases of all sections in a raw folder. The labels of unlabeled cases are not looked for.

    Raises:
        FileNotFoundError: When files are missing; names all of them.
    """
    root = Path(raw_dir).expanduser().absolute()
    cases = []
    missing: dict[str, list[str]] = {}
    for section, ids in sections.items():
        keys = ("image",) if section == "unlabeled" else ("image", "label")
        for case in ids:
            files = _files(root, protocol, case, keys)
            for key in keys if files else ("image",):
                if key not in files:
                    missing.setdefault(key, []).append(case)
            cases.append(RawCase(case, files, protocol.axes, protocol.spacing_mm))
    if missing:
        lost = " and ".join(f"the {key} of {', '.join(sorted(ids))}" for key, ids in missing.items())
        raise FileNotFoundError(
            f"raw_dir must hold every case of protocol {protocol.name} of {protocol.dataset}, got {root} without "
            f"{lost}. Looked for {' or '.join(' with '.join(place.values()) for place in protocol.files)}."
        )
    return cases


def _files(root: Path, protocol: Protocol, case: str, keys: Sequence[str]) -> dict[str, Path]:
    """Files of a case that exist, from the first place that has its image."""
    for place in protocol.files:
        # An h5 file holds the label, too.
        files = {key: root / place.get(key, place["image"]).format(id=case) for key in keys}
        if files["image"].is_file():
            return {key: file for key, file in files.items() if file.is_file()}
    return {}


@contextmanager
def _voxels(path: Path, key: str) -> Iterator[Any]:
    """What has the shape of a volume and turns into an array of it, as long as the file is open."""
    try:
        if path.suffix == ".h5":
            with _h5py().File(path) as file:
                yield file[key]
        else:
            with _opened(path, key) as volume:
                yield volume.dataobj
    except (OSError, EOFError, KeyError, zlib.error) as error:
        raise ValueError(f"{path} must hold a readable {key}, got {type(error).__name__}: {error}") from error


@contextmanager
def _opened(path: Path, key: str) -> Iterator[Any]:
    """A NIfTI file of a volume."""
    try:
        yield open_volume(path)
    except VolumeError as error:
        raise ValueError(f"{path} must hold a readable {key}, got one that {error}") from error


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(
            "The `h5py` package is required to read h5 files. Install it with `pip install dinomix-monai[h5]`."
        ) from error
    return h5py
