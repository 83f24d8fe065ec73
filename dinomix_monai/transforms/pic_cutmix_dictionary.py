"""PIC: progressive imbalance-aware CutMix of a batch, on dictionaries."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple_rep

from dinomix_monai.core.keys import BatchKeys
from dinomix_monai.transforms.pic_cutmix import PICCutMix
from dinomix_monai.transforms.pic_recipe import MixRecipe, apply_recipes

__all__ = ["PICCutMixd"]


class PICCutMixd(Randomizable, MapTransform):
    """
    Dictionary-based :class:`PICCutMix`; takes a batch.

    The mixed batch has the mixed patches under ``keys``, ``label_key`` and ``weight_key``, and nothing else.

    Args:
        keys: images that are mixed along with label and weight.
        labeled_counts: see :class:`PICCutMix`.
        label_key: ground truth or pseudo-labels.
        weight_key: weight of each voxel.
        labeled_key: for each patch, whether its label is ground truth.
        position_key: offset of each patch in its volume; may be missing from the batch unless placement is anatomical.
        mode: ``"bilinear"`` or ``"nearest"``, how a deformation interpolates each key; one for all or a sequence.
        allow_missing_keys: whether a key may be missing from the batch.
        **kwargs: see :class:`PICCutMix`.

    Attributes:
        mixer: the array transform, which holds the state.
    """

    def __init__(
        self,
        keys: KeysCollection,
        labeled_counts: list[float],
        label_key: str = BatchKeys.LABEL,
        weight_key: str = BatchKeys.WEIGHT,
        labeled_key: str = BatchKeys.LABELED,
        position_key: str = BatchKeys.POSITION,
        mode: str | Sequence[str] = "bilinear",
        allow_missing_keys: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.label_key, self.weight_key = label_key, weight_key
        self.labeled_key, self.position_key = labeled_key, position_key
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        self.mixer = PICCutMix(labeled_counts, **kwargs)

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> PICCutMixd:
        """See :meth:`monai.transforms.Randomizable.set_random_state`."""
        super().set_random_state(seed, state)
        self.mixer.set_random_state(state=self.R)
        return self

    @property
    def progress(self) -> float:
        """Progress of the training in [0, 1]; see :attr:`PICCutMix.progress`."""
        return self.mixer.progress

    @progress.setter
    def progress(self, value: float) -> None:
        self.mixer.progress = value

    @property
    def recipes(self) -> tuple[MixRecipe, ...]:
        """What the last call drew, one recipe for each mixed patch."""
        return self.mixer.recipes

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, torch.Tensor]:
        """
        Draws recipes for a batch and applies them.

        Args:
            data: batch with label, weight and ``keys`` of shape (B, C, H, W[, D]), and the labeled flags.

        Returns:
            The mixed batch, with entries of shape (M, C, H, W[, D]).
        """
        images = self._images(data)
        mixed = self.mixer(
            *self._tensors(data, images),
            labeled=data[self.labeled_key],
            positions=data.get(self.position_key),
            modes=list(images.values()),
        )
        return self._mixed_batch(images, mixed)

    def replay(self, data: Mapping[Hashable, Any], recipes: Sequence[MixRecipe]) -> dict[Hashable, torch.Tensor]:
        """
        Applies recipes to a batch; nothing is drawn, and the state of the transform neither matters nor changes.

        Args:
            data: batch with label, weight and ``keys`` of shape (B, C, H, W[, D]).
            recipes: such as those that :attr:`recipes` gave after a call.

        Returns:
            The mixed batch, bitwise equal each time.

        Raises:
            ValueError: Where :func:`apply_recipes` raises it.
        """
        images = self._images(data)
        return self._mixed_batch(images, apply_recipes(self._tensors(data, images), recipes, list(images.values())))

    def _images(self, data: Mapping[Hashable, Any]) -> dict[Hashable, str]:
        """Keys of the images that the batch has, and for each how a deformation interpolates it."""
        return dict(self.key_iterator(data, self.mode))

    def _tensors(self, data: Mapping[Hashable, Any], images: Iterable[Hashable]) -> list[torch.Tensor]:
        return [data[key] for key in (self.label_key, self.weight_key, *images)]

    def _mixed_batch(self, images: Iterable[Hashable], mixed: Iterable[torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        return dict(zip((self.label_key, self.weight_key, *images), mixed))

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`PICCutMix.state_dict`."""
        return self.mixer.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See :meth:`PICCutMix.load_state_dict`."""
        self.mixer.load_state_dict(state)
