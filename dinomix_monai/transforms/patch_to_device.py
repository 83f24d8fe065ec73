"""Copying patches to the device of the training."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform

__all__ = ["PatchToDeviced"]


class PatchToDeviced(MapTransform):
    """
    Copies patches to a device, if their volume is not there; takes one sample.

    Put it behind the transform that cuts the patch, so that the volume stays where it is, and before those that are
    better done on the device. To a GPU a patch goes through pinned memory, and nobody waits until it has arrived.

    Args:
        keys: patches, as tensors.
        device: device of the training.
        allow_missing_keys: whether a key may be missing.
    """

    def __init__(self, keys: KeysCollection, device: torch.device | str, allow_missing_keys: bool = False) -> None:
        super().__init__(keys, allow_missing_keys)
        self.device = torch.device(device)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with patches of any shape.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            patch = result[key]
            # Other devices than CUDA's read memory that is not pinned.
            is_pinned = self.device.type == "cuda" and patch.device.type == "cpu"
            if is_pinned:
                patch = patch.contiguous().pin_memory()
            result[key] = patch.to(self.device, non_blocking=is_pinned)
        return result
