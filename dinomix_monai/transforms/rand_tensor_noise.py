"""Gaussian noise that is drawn where the image is."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import MAX_SEED, convert_to_tensor

__all__ = ["RandTensorNoised"]


class RandTensorNoised(RandomizableTransform, MapTransform):
    """
    Adds Gaussian noise of a random standard deviation, as MONAI's ``RandGaussianNoised``, drawn on the image's device.

    MONAI draws each voxel in NumPy, which takes a few times as long on a CPU and is copied to a GPU patch by patch.
    From the transform's own random state come the deviation and the seed of the voxels, so ``set_random_state`` decides
    both; another kind of device draws other noise. Images of one sample get the same deviation, and the same noise
    where they have the same shape.

    Args:
        keys: images.
        std: largest standard deviation; each sample has one between 0 and this.
        prob: how often noise is added.
        allow_missing_keys: whether a key may be missing.

    Raises:
        ValueError: When ``std`` is negative.
    """

    def __init__(
        self, keys: KeysCollection, std: float = 0.1, prob: float = 0.1, allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        RandomizableTransform.__init__(self, prob)
        if std < 0:
            raise ValueError(f"std must be >= 0, got {std}.")
        self.std = std
        self._present_std = 0.0
        self._seed = 0

    def randomize(self, data: Any = None) -> None:
        """Draws whether there is noise, its deviation and its seed."""
        super().randomize(None)
        if self._do_transform:
            self._present_std = self.R.uniform(0, self.std)
            self._seed = int(self.R.randint(MAX_SEED, dtype=np.uint32))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with images of any shape.
        """
        result = dict(data)
        self.randomize()
        if self._do_transform:
            for key in self.key_iterator(result):
                image = convert_to_tensor(result[key], dtype=torch.float32, track_meta=True)
                generator = torch.Generator(image.device).manual_seed(self._seed)
                noise = torch.randn(image.shape, generator=generator, device=image.device)
                result[key] = image + noise.mul_(self._present_std)
        return result
