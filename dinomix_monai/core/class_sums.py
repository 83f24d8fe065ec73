"""Sums over the voxels of each class."""

from __future__ import annotations

import torch

__all__ = ["class_sums"]


def class_sums(values: torch.Tensor, label: torch.Tensor, num_classes: int) -> torch.Tensor:
    """
    The sum of a map over the voxels of each class, as exact as PyTorch's own sums; it can be differentiated.

    ``index_add`` adds voxel after voxel to one number in single precision, which beyond some million of them loses the
    last digits of each addend: a Dice loss of 0.005 on four patches of 128 x 128 x 64 voxels came out as 0.001, and on
    more of them below 0. Here each row of a map has sums of its own, which are then added pairwise.

    Args:
        values: shape (..., D).
        label: class of each voxel, whole numbers, same shape.
        num_classes: classes are below this.

    Returns:
        Shape (num_classes,).

    Example:
        >>> import torch
        >>> class_sums(torch.tensor([[1.0, 2.0], [4.0, 8.0]]), torch.tensor([[0, 1], [1, 1]]), 3)
        tensor([ 1., 14.,  0.])
    """
    rows = values.flatten(0, -2)
    sums = torch.zeros(len(rows), num_classes, dtype=values.dtype, device=values.device)
    return sums.scatter_add(1, label.flatten(0, -2), rows).sum(dim=0)
