"""Where a label that is not complete tells whether a voxel has a class."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["counts_if_all_known", "is_known", "known_masks"]


def is_known(label: torch.Tensor, value: int, possible: np.ndarray) -> torch.Tensor:
    """
    For each voxel whether the label tells if it has a class.

    Args:
        label: label values with codes of sets of classes, any shape.
        value: the class.
        possible: for each value of a label, which classes it stands for, shape (values, C), see
            :meth:`dinomix_monai.volumes.PartialLabels.table`.

    Example:
        >>> import numpy as np
        >>> possible = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1]], dtype=bool)
        >>> is_known(torch.tensor([0, 1, 2, 3]), 2, possible)
        tensor([ True,  True,  True, False])
    """
    num_classes = possible.shape[1]
    known = torch.ones_like(label, dtype=torch.bool)
    for code in np.flatnonzero(possible[num_classes:, value]) + num_classes:
        known &= label != int(code)
    return known


def known_masks(
    prediction: torch.Tensor, label: torch.Tensor, value: int, possible: np.ndarray | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Masks of a class in a prediction and in its label, as far as the label tells whether a voxel has it.

    Args:
        prediction: label values, any shape.
        label: label values with codes of sets of classes, same shape.
        value: the class.
        possible: see :func:`is_known`; ``None`` where the label is complete.
    """
    found = prediction == value
    return found if possible is None else found & is_known(label, value, possible), label == value


def counts_if_all_known(found: np.ndarray, totals: np.ndarray, is_known: np.ndarray) -> np.ndarray:
    """
    Voxels of each class as if all voxels were known.

    A class is counted where somebody has looked for it, and its share of that is taken for its share of all voxels.
    What is left is background.

    Args:
        found: voxels of each class, background first, shape (C,).
        totals: all voxels of each group, of which it is known together what somebody has looked for, shape (groups,).
        is_known: whether somebody has looked for a class in a group, shape (groups, C).
    """
    shares = found / np.maximum((totals[:, None] * is_known).sum(axis=0), 1)
    shares[0] = max(0.0, 1 - shares[1:].sum())
    return shares * totals.sum()
