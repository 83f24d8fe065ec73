"""Distillation of a frozen teacher's features."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

from dinomix_monai.core.processes import sum_over_processes

__all__ = ["FeatureDistillationLoss", "semantic_rarity", "semantic_uniqueness"]


class FeatureDistillationLoss(_Loss):
    """
    Normalized squared distance between student features and those of a frozen teacher, cell by cell.

    ``sum_i a_i |s_i / |s_i| - t_i / |t_i||^2 / sum_i a_i``: 0 where both point the same way, 2 where they are
    orthogonal, 4 at most. The plain form has ``a_i = 1``; the others weight a cell by :func:`semantic_uniqueness` or by
    :func:`semantic_rarity`, which gives a small organ as much as a large one. The caller puts both on one grid and
    projects the student to the teacher's channels. The target is detached here, so no gradient reaches the teacher.
    Cells whose target is 0 in all channels, of which the teacher has nothing to say, do not count; where no cell counts
    the loss is 0. Under ``torch.distributed`` sums run over all processes.

    Reference: Liu and Sun, "DINO-Mix", 2026, https://arxiv.org/abs/2602.07819 (normalized MSE); the weights are
    readings of its "semantic uniqueness".

    Args:
        weighting: {``"plain"``, ``"uniqueness"``, ``"rarity"``} all cells alike, or by their uniqueness or rarity.
            Defaults to ``"plain"``.

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
        if weighting not in ("plain", *_WEIGHTS):
            raise ValueError(f"weighting must be one of plain, {', '.join(_WEIGHTS)}, got {weighting!r}.")
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
        weight = self.weights(target)
        total_distance, total = sum_over_processes(torch.stack([(weight * distance).sum(), weight.sum()]))
        return total_distance / total.clamp_min(1e-6)

    def weights(self, target: torch.Tensor) -> torch.Tensor:
        """
        How much each cell counts.

        Args:
            target: teacher features, shape (B, C, H, W[, D]).

        Returns:
            Weights, shape (B, H, W[, D]); 0 for cells that are 0 in all channels.
        """
        weight = target.any(dim=1).float()
        return weight if self.weighting == "plain" else weight * _WEIGHTS[self.weighting](target)


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


@torch.no_grad()
def semantic_rarity(features: torch.Tensor, temperature: float = 0.1, references: int = 256) -> torch.Tensor:
    """
    How few cells of its slice are like each cell: ``1 / mean_j exp((cos(f_i, f_j) - 1) / temperature)``, scaled to mean
    1 in every slice.

    Where cells fall into groups, each group has the same weight in sum, however small it is: as an inverse frequency of
    classes, without classes.

    Args:
        features: shape (B, C, H, W[, D]); a slice is one H x W plane.
        temperature: difference of cosines over which cells cease to be alike.
        references: about how many cells of a slice, on a regular grid, each one is compared with at most; also bounds
            how many times the weight of a common cell a rare one can have.

    Returns:
        Weights, shape (B, H, W[, D]); all 1 in a slice whose cells are all alike. Cells that are 0 in all channels are
        left out and weigh 0.
    """
    counted = features.any(dim=1)
    # Slices first, (B[, D], cells, C): a matrix product compares all cells of one.
    unit = F.normalize(features.float(), dim=1).movedim((1, 2, 3), (-1, -3, -2))
    there = counted.movedim((1, 2), (-2, -1)).float()
    step = math.ceil(math.sqrt(math.prod(there.shape[-2:]) / references))
    others, other_there = unit[..., ::step, ::step, :].flatten(-3, -2), there[..., ::step, ::step].flatten(-2)
    # All pairs of cells and others: in place, because nothing here is as large.
    alike = (unit.flatten(-3, -2) @ (others / temperature).transpose(-1, -2)).sub_(1 / temperature).exp_()
    density = (alike @ other_there[..., None])[..., 0] / other_there.sum(-1, keepdim=True).clamp_min(1)
    weight = there.flatten(-2) / density.clamp_min(1 / references)
    mean = weight.sum(-1, keepdim=True) / there.flatten(-2).sum(-1, keepdim=True).clamp_min(1)
    weight = (weight / mean.clamp_min(1e-6)).unflatten(-1, there.shape[-2:])
    return weight.movedim((-2, -1), (1, 2))


_WEIGHTS = {"uniqueness": semantic_uniqueness, "rarity": semantic_rarity}
