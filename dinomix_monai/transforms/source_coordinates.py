"""Where each voxel of a patch comes from."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform

from dinomix_monai.core.keys import BatchKeys

__all__ = ["SourceCoordinatesd"]


class SourceCoordinatesd(MapTransform):
    """
    Writes for each voxel of a patch the number of its volume and its position in mm; takes one sample.

    The position follows from the affine, so it is right after any chain of MONAI's spatial transforms. Put it after the
    last of them. What mixes patches mixes this map like an image, and it still tells where everything comes from;
    number 0 is nowhere.

    Args:
        keys: image; with several, the last one counts.
        token_cache: numbers volumes, as :class:`dinomix_monai.teacher.TokenCache` does.
        volume_key: name of the volume that the patch was cut from, as :class:`AddToTokenCached` writes it.
        source_key: entry to write, a float32 tensor of shape (4, H, W, D).
        allow_missing_keys: whether a key may be missing.

    Raises:
        TypeError: When the image is not a ``MetaTensor`` and so has no affine.
    """

    def __init__(
        self,
        keys: KeysCollection,
        token_cache: Any,
        volume_key: str = BatchKeys.VOLUME,
        source_key: str = BatchKeys.SOURCE,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.token_cache, self.volume_key, self.source_key = token_cache, volume_key, source_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with an image of shape (C, H, W, D) and the name of its volume.
        """
        result = dict(data)
        for key in self.key_iterator(result):
            image = result[key]
            if not isinstance(image, MetaTensor):
                raise TypeError(
                    f"{key} must be a MetaTensor, whose affine tells where it lies, got {type(image).__name__}."
                )
            affine = image.affine.to(image.device, torch.float32)
            steps = [torch.arange(side, device=image.device, dtype=torch.float32) for side in image.shape[1:]]
            # Along each axis of the patch, (3, side): how far a voxel lies from the first one.
            along = [affine[:3, axis, None] * step for axis, step in enumerate(steps)]
            plane = along[1][:, :, None] + along[2][:, None, :] + affine[:3, 3, None, None]
            source = torch.empty(4, *image.shape[1:], device=image.device)
            source[0] = self.token_cache.number(result[self.volume_key])
            torch.add(along[0][:, :, None, None], plane[:, None], out=source[1:])
            result[self.source_key] = source
        return result
