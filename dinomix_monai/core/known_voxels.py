"""Where a label that is not complete tells whether a voxel has a class."""

from __future__ import annotations

import numpy as np
import torch

__all__ = ["is_known"]


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
