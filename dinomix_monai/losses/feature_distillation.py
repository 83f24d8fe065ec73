"""Distillation of a frozen teacher's features."""

from __future__ import annotations

import torch
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

from dinomix_monai.processes import sum_over_processes

__all__ = ["FeatureDistillationLoss", "semantic_uniqueness"]


class FeatureDistillationLoss(_Loss):
    """
    Normalized squared distance between student features and those of a frozen teacher, cell by cell.

    ``sum_i a_i |s_i / |s_i| - t_i / |t_i||^2 / sum_i a_i``: 0 where both point the same way, 2 where they are
    orthogonal, 4 at most. The plain form has ``a_i = 1``, the uniqueness form weights a cell by
    :func:`semantic_uniqueness`. The caller puts both on one grid and projects the student to the teacher's channels.
    The target is detached here, so no gradient reaches the teacher. Cells whose target is 0 in all channels, of which
    the teacher has nothing to say, do not count; where no cell counts the loss is 0. Under ``torch.distributed`` sums
    run over all processes.

    Reference: Liu and Sun, "DINO-Mix", 2026, https://arxiv.org/abs/2602.07819 (normalized MSE); the weights are a
    reading of its "semantic uniqueness".

    Args:
        weighting: {``"plain"``, ``"uniqueness"``} all cells alike, or by their uniqueness. Defaults to ``"plain"``.

    Raises:
        ValueError: When ``weighting`` is not one of the above.

    Example:
        >>> import torch
        >>> from dinomix_monai.losses import FeatureDistillationLoss
        >>> features = torch.rand(2, 8, 4, 4, 3)
        >>> round(FeatureDistillationLoss()(3 * features, features).item(), 4)
        0.0
    """

    def __init__(self, weighting: str = "plain") -> None:
        super().__init__()
        if weighting not in ("plain", "uniqueness"):
            raise ValueError(f"weighting must be 'plain' or 'uniqueness', got {weighting!r}.")
        self.weighting = weighting

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input: student features, shape (B, C, H, W[, D]).
            target: teacher features, same shape and C.

        Raises:
            ValueError: When the shapes differ.
        """
        if input.shape != target.shape:
            raise ValueError(f"input must have the shape of target {tuple(target.shape)}, got {tuple(input.shape)}.")
        target = target.detach().float()
        distance = (F.normalize(input.float(), dim=1) - F.normalize(target, dim=1)).square().sum(dim=1)
        weight = target.any(dim=1).float()
        if self.weighting == "uniqueness":
            weight = weight * semantic_uniqueness(target)
        total_distance, total = sum_over_processes(torch.stack([(weight * distance).sum(), weight.sum()]))
        return total_distance / total.clamp_min(1e-6)


def semantic_uniqueness(features: torch.Tensor) -> torch.Tensor:
    """
    How unlike the rest of its slice each cell is: ``1 - mean_j cos(f_i, f_j)``, scaled to mean 1 in every slice.

    Args:
        features: shape (B, C, H, W[, D]); a slice is one H x W plane.

    Returns:
        Weights, shape (B, H, W[, D]); all 1 in a slice whose cells are all alike. Cells that are 0 in all channels are
        left out and weigh 0, unless the whole slice is so.
    """
    counted = features.any(dim=1, keepdim=True).float()
    cells = counted.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    unit = F.normalize(features.float(), dim=1)
    # The mean of all cosines with a cell is its cosine with the mean vector.
    mean_vector = unit.sum(dim=(2, 3), keepdim=True) / cells
    weight = counted[:, 0] - (unit * mean_vector).sum(dim=1)
    mean = weight.sum(dim=(1, 2), keepdim=True) / cells[:, 0]
    return torch.where(mean > 1e-6, weight / mean.clamp_min(1e-6), torch.ones_like(weight))
