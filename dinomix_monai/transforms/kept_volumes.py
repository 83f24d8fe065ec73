"""Preprocessed volumes that are kept on disk."""

from __future__ import annotations

import ctypes
import hashlib
import json
import logging
import os
import pickle
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from filelock import FileLock
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Compose, MapTransform
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dinomix_monai.core.files import atomic_write

__all__ = ["KeptVolumesd"]

logger = logging.getLogger(__name__)

# What those of a training need to know of a volume.
_META = ("affine", "original_affine", "spatial_shape", "filename_or_obj")
_PIECE = 2**20


class KeptVolumesd(MapTransform):
    """
    Applies transforms to the volumes of a case, and keeps what they give for the next start; takes one sample.

    What was kept is read again where the files of the case have the same content, the case is the same otherwise, and
    so are the transforms with all their arguments and the versions of MONAI and PyTorch; anything else is computed
    anew. A file is written in one move and named by all of this, with a digest of its own content: a damaged one is
    made anew, and no code in it is run. Several threads and processes may share the folder: the first one computes, and
    the others wait for it. Where nothing can be written, nothing is kept, and the log says so.

    Volumes that are kept come mapped from their file, the first time, too: what follows reads them as if they were in
    memory, and the operating system holds there what there is room for, so a data set may be larger. Who writes to such
    a volume changes it in this process alone.

    Of the metadata of a volume its affine, its file, and the grid of that file stay.

    Args:
        keys: paths of volumes, or lists of them, which the transforms replace by volumes.
        transforms: transforms of a sample that are not random.
        folder: where the files are; made if missing. ``None`` to keep nothing.
        allow_missing_keys: whether a key may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        transforms: Sequence[Callable],
        folder: str | os.PathLike | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.transforms = Compose(transforms)
        self.folder = None if folder is None else Path(folder)
        self._settings = None if folder is None else _settings(transforms)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with paths.
        """
        keys = [str(key) for key in self.key_iterator(dict(data))]
        file = self._file(data, keys)
        if file is None:
            return dict(self.transforms(dict(data)))
        with FileLock(_lock_of(file)):
            if (kept := _read(file)) is None:
                made = _without_history(self.transforms(dict(data)), keys)
                _write(made, file)
                kept = _read(file) or made
                del made
                _return_freed_memory()
        return dict(data) | dict(kept)

    def _file(self, data: Mapping[Hashable, Any], keys: Sequence[str]) -> Path | None:
        """Where the volumes of a case are kept; ``None`` where they cannot be."""
        if self.folder is None or self._settings is None:
            return None
        try:
            file = self.folder / f"{self._name(data, keys)}.safetensors"
            self.folder.mkdir(parents=True, exist_ok=True)
            _lock_of(file).touch()
        except OSError as error:
            # That a file of the case is missing is said by the transform that needs it.
            logger.warning("Preprocessed volumes are not kept in %s: %s", self.folder, error)
            return None
        return file

    def _name(self, data: Mapping[Hashable, Any], keys: Sequence[str]) -> str:
        digest = hashlib.sha256(self._settings or b"")
        digest.update(json.dumps({str(key): value for key, value in data.items()}, default=str).encode())
        for key in keys:
            for path in [data[key]] if isinstance(data[key], (str, os.PathLike)) else data[key]:
                digest.update(_digest_of_file(path))
        return digest.hexdigest()


def _lock_of(file: Path) -> Path:
    return file.with_suffix(".lock")


def _settings(transforms: Sequence[Callable]) -> bytes | None:
    """All that the transforms depend on; ``None`` where that cannot be told, as of a function without a name."""
    try:
        return f"{monai.__version__} {torch.__version__}".encode() + pickle.dumps(list(transforms))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        logger.warning("Preprocessed volumes are not kept, because a transform of them has no fixed name: %s", error)
        return None


def _digest_of_file(path: str | os.PathLike) -> bytes:
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.digest()


def _without_history(data: Mapping[Hashable, Any], keys: Sequence[str]) -> dict[Hashable, MetaTensor]:
    """The volumes with the metadata that stay, in the types that a file gives."""
    return {key: _volume(data[key].as_tensor(), _meta_as_text(data[key])) for key in keys}


def _meta_as_text(volume: MetaTensor) -> str:
    plain = {name: np.asarray(volume.meta[name]).tolist() for name in _META if name in volume.meta}
    return json.dumps(plain)


def _volume(voxels: torch.Tensor, meta_as_text: str) -> MetaTensor:
    meta = json.loads(meta_as_text)
    meta["original_affine"] = torch.tensor(meta["original_affine"], dtype=torch.float64)
    meta["spatial_shape"] = np.array(meta["spatial_shape"])
    affine = torch.tensor(meta.pop("affine"), dtype=torch.float64)
    return MetaTensor(voxels.contiguous(), affine=affine, meta=meta)


def _digest(voxels: Mapping[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for key in sorted(voxels):
        digest.update(voxels[key].numpy().data)
    return digest.hexdigest()


def _write(volumes: Mapping[Hashable, MetaTensor], file: Path) -> None:
    voxels = {str(key): volume.as_tensor().cpu() for key, volume in volumes.items()}
    about = {str(key): _meta_as_text(volume) for key, volume in volumes.items()}
    try:
        with atomic_write(file) as stream:
            stream.write(save(voxels, {**about, "sha256": _digest(voxels)}))
    except OSError as error:
        logger.warning("Preprocessed volumes are not kept: %s", error)


def _read(file: Path) -> dict[Hashable, MetaTensor] | None:
    """What is kept; ``None`` where it is not there or damaged."""
    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as content:
            about = dict(content.metadata() or {})
            voxels = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118  # it is no mapping
        if about.pop("sha256", None) == _digest(voxels):
            return {key: _volume(voxels[key], text) for key, text in about.items()}
    except (SafetensorError, KeyError, ValueError):
        pass
    logger.warning("%s is damaged and is made anew.", file)
    return None


def _return_freed_memory() -> None:
    # glibc keeps what earlier volumes have freed in blocks of up to 32 MB, between the little that stays of each of
    # them: as much as the volumes themselves, in the end.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)
