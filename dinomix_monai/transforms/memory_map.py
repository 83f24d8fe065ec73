"""Volumes that lie on disk and not in memory."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_numpy, convert_to_tensor

__all__ = ["MemoryMapd"]


class MemoryMapd(MapTransform):
    """
    Moves volumes into files that are mapped into memory; takes one sample.

    What follows reads them as before, and only the parts that it uses: the operating system keeps of them in memory
    what there is room for. In front of a ``CacheDataset``'s first random transform it lets the data set be larger than
    the memory. Give that data set ``copy_cache=False``, or it reads a whole volume for each patch. The files have no
    name, so they are gone with the process, however it ends. Needs an operating system that can remove open files,
    which Windows is not.

    Args:
        keys: volumes, on any device; mapped ones are on the CPU.
        folder: where the files are, on a local disk with room for all volumes; made if missing.
        allow_missing_keys: whether a key may be missing.
    """

    def __init__(self, keys: KeysCollection, folder: str | os.PathLike, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.folder = Path(folder)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with volumes of any shape.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            result[key] = self._mapped(convert_to_tensor(result[key], track_meta=isinstance(result[key], MetaTensor)))
        _return_freed_memory()
        return result

    def _mapped(self, volume: torch.Tensor) -> torch.Tensor:
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder) as file:
            file.write(np.ascontiguousarray(convert_to_numpy(volume)).data)
            file.flush()
            # A map stays when its file is removed. Private: what would write to it gets a copy of the page.
            voxels = torch.from_file(file.name, shared=False, size=volume.numel(), dtype=volume.dtype)
        voxels = voxels.view(volume.shape)
        if not isinstance(volume, MetaTensor):
            return voxels
        return MetaTensor(voxels, meta=volume.meta, applied_operations=volume.applied_operations)


def _return_freed_memory() -> None:
    # glibc keeps what earlier volumes have freed in blocks of up to 32 MB, between the little that stays of each of
    # them: as much as the volumes themselves, in the end.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
