"""Dice of each class of one label map."""

from __future__ import annotations

import numpy as np
import torch
from monai.metrics import DiceMetric

__all__ = ["class_dice"]


def class_dice(found: torch.Tensor, label: torch.Tensor, num_classes: int) -> np.ndarray:
    """
    MONAI's Dice of each foreground class.

    Args:
        found: predicted class of each voxel, shape (H, W, D).
        label: true class of each voxel, same shape; what is none, because nobody has looked there, is left out.
        num_classes: number of classes, background included.

    Returns:
        Shape (num_classes - 1,); NaN for a class that the label does not show.
    """
    is_class = label < num_classes
    found, label = found.where(is_class, 0), label.where(is_class, 0)
    metric = DiceMetric(include_background=False, num_classes=num_classes)
    return metric(found[None, None], label[None, None])[0].cpu().numpy()  # type: ignore[union-attr]  # a tensor
