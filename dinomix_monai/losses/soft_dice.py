"""Dice of probabilities."""

from __future__ import annotations

import torch

from dinomix_monai.core.class_sums import class_sums
from dinomix_monai.core.processes import sum_over_processes

__all__ = ["soft_dice"]


def soft_dice(
    log_prob: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    smooth: float = 1e-5,
    beside: torch.Tensor | None = None,
    log_prob_target: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Soft Dice of each class over a whole batch, and under ``torch.distributed`` over those of all processes.

    Args:
        log_prob: logarithms of probabilities, shape (B, C, H, W[, D]).
        target: label values, whole numbers, shape (B, 1, H, W[, D]).
        weight: weight of each voxel, shape of ``target``; ``None`` for 1 everywhere.
        smooth: added to numerator and denominator.
        beside: what else is predicted of each class, where it is known not to be, shape (C,); ``None`` for nothing.
        log_prob_target: those of the target, shape of ``target``, if they are there already.

    Returns:
        Dice, shape (C,), and the weight of the voxels of each class in the target, same shape.

    Example:
        >>> import torch
        >>> from dinomix_monai.losses import soft_dice
        >>> log_prob = torch.tensor([[[0.25, 0.5], [0.75, 0.5]]]).log()
        >>> dice, voxels = soft_dice(log_prob, torch.tensor([[[1, 1]]]), smooth=0)
        >>> [round(value, 4) for value in dice.tolist()], voxels.tolist()
        ([0.0, 0.7692], [0.0, 2.0])
    """
    of_target = log_prob.gather(1, target) if log_prob_target is None else log_prob_target
    prob, prob_target = log_prob.exp(), of_target.exp()
    if weight is not None:
        prob, prob_target = prob * weight, prob_target * weight
    classes = log_prob.shape[1]
    overlap = class_sums(prob_target, target, classes)
    predicted = prob.sum(dim=[0, *range(2, prob.ndim)])
    if beside is not None:
        predicted = predicted + beside
    present = class_sums(torch.ones_like(prob_target) if weight is None else weight, target, classes)
    overlap, predicted, present = sum_over_processes(torch.stack([overlap, predicted, present]))
    return (2 * overlap + smooth) / (predicted + present + smooth), present
