"""Places around which labeled patches are cut, in label maps that are not complete."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import ClassesToIndicesd
from monai.utils import convert_to_tensor

__all__ = ["PartialClassesToIndicesd"]


class PartialClassesToIndicesd(ClassesToIndicesd):
    """
    ``monai.transforms.ClassesToIndicesd`` for labels that may have codes of sets of classes; takes one sample.

    A voxel that is known to have none of some classes counts as background, which it mostly is. Without it, a case in
    which nobody has looked for some class has no background at all, no patch is cut far from an organ, and the network
    finds organs there. A voxel that may have any class teaches nothing and is no place for a patch.

    Args:
        keys: label maps, values of shape (1, H, W[, D]).
        possible: for each value of a label, which classes it stands for, shape (values, C), as
            :meth:`dinomix_monai.volumes.PartialLabels.table` gives it; ``None`` where all labels are complete.
        **kwargs: see ``monai.transforms.ClassesToIndicesd``.
    """

    def __init__(self, keys: KeysCollection, possible: np.ndarray | None = None, **kwargs: Any) -> None:
        super().__init__(keys, **kwargs)
        self.possible = possible

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with label maps.
        """
        if self.possible is None:
            return super().__call__(data)
        class_of = np.arange(len(self.possible))
        class_of[self.possible.shape[1] :][~self.possible[self.possible.shape[1] :].all(axis=1)] = 0
        labels = {key: convert_to_tensor(data[key]) for key in self.key_iterator(data)}
        table = {key: torch.as_tensor(class_of, device=label.device) for key, label in labels.items()}
        found = super().__call__({**data, **{key: table[key][label.long()] for key, label in labels.items()}})
        return {**found, **{key: data[key] for key in labels}}
