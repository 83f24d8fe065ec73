"""Distillation of a frozen teacher's features."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

from dinomix_monai.core.processes import sum_over_processes

__all__ = ["FeatureDistillationLoss", "semantic_rarity", "semantic_uniqueness"]


class FeatureDistillationLoss(_Loss):
    r"""
    Normalized squared distance between student features ``s`` and those of a frozen teacher ``t``, cell by cell.

    .. math::
        L = \frac{\sum_i m_i a_i \left\| s_i / \|s_i\| - t_i / \|t_i\| \right\|^2}{\sum_i m_i a_i}

    A cell ``i`` adds 0 where both vectors point the same way, 2 where they are orthogonal, and 4 at most. The mask
    ``m_i`` is 1 where the teacher has a feature, else 0; where no cell counts, the loss is 0. The plain form has
    weights ``a_i = 1``; the others weight a cell by :func:`semantic_uniqueness` or by :func:`semantic_rarity`, which
    gives a small organ as much as a large one. The caller puts both on one grid and projects the student to the
    teacher's channels. The teacher's features are detached here, so no gradient reaches the teacher. Under
    ``torch.distributed`` both sums run over all processes.

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

    def forward(
        self, student_features: torch.Tensor, teacher_features: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            student_features: shape (B, C, H, W[, D]).
            teacher_features: the same shape.
            mask: cells that count, boolean, shape (B, H, W[, D]). Defaults to all cells.

        Returns:
            Loss, a scalar.

        Raises:
            ValueError: When the shapes do not belong together.
        """
        if student_features.shape != teacher_features.shape:
            raise ValueError(
                f"student_features must have the shape of teacher_features {tuple(teacher_features.shape)}, "
                f"got {tuple(student_features.shape)}."
            )
        teacher_features = teacher_features.detach().float()
        difference = F.normalize(student_features.float(), dim=1) - F.normalize(teacher_features, dim=1)
        distance, weight = difference.square().sum(dim=1), self.weights(teacher_features, mask)
        total_distance, total = sum_over_processes(torch.stack([(weight * distance).sum(), weight.sum()]))
        return total_distance / total.clamp_min(1e-6)

    def weights(self, teacher_features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """
        Weight ``m_i a_i`` of each cell.

        Args:
            teacher_features: shape (B, C, H, W[, D]).
            mask: cells that count, boolean, shape (B, H, W[, D]). Defaults to all cells.

        Returns:
            Weights, shape (B, H, W[, D]); 0 for cells that do not count.

        Raises:
            ValueError: When ``mask`` has another shape.
        """
        counted = _mask_of(teacher_features, mask)
        return counted if self.weighting == "plain" else counted * _WEIGHTS[self.weighting](teacher_features, mask)


def _mask_of(features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    shape = features.shape[:1] + features.shape[2:]
    if mask is None:
        return features.new_ones(shape, dtype=torch.float32)
    if mask.shape != shape:
        raise ValueError(f"mask must have one value for each cell, shape {tuple(shape)}, got {tuple(mask.shape)}.")
    return mask.float()


def semantic_uniqueness(features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """
    How unlike the rest of its slice each cell is: ``1 - mean_j cos(f_i, f_j)``, scaled to mean 1 in every slice.

    Args:
        features: shape (B, C, H, W[, D]); a slice is one H x W plane.
        mask: cells that count, boolean, shape (B, H, W[, D]). Defaults to all cells.

    Returns:
        Weights, shape (B, H, W[, D]); all 1 in a slice whose cells are all alike. Other cells are left out and weigh 0,
        unless the whole slice is so.

    Raises:
        ValueError: When ``mask`` has another shape.
    """
    counted = _mask_of(features, mask)[:, None]
    cells = counted.sum(dim=(2, 3), keepdim=True).clamp_min(1)
    unit = F.normalize(features.float(), dim=1) * counted
    # The mean of all cosines with a cell is its cosine with the mean vector.
    mean_vector = unit.sum(dim=(2, 3), keepdim=True) / cells
    weight = counted[:, 0] - (unit * mean_vector).sum(dim=1)
    mean = weight.sum(dim=(1, 2), keepdim=True) / cells[:, 0]
    return torch.where(mean > 1e-6, weight / mean.clamp_min(1e-6), torch.ones_like(weight))


@torch.no_grad()
def semantic_rarity(
    features: torch.Tensor, mask: torch.Tensor | None = None, temperature: float = 0.1, references: int = 256
) -> torch.Tensor:
    """
    How few cells of its slice are like each cell: ``1 / mean_j exp((cos(f_i, f_j) - 1) / temperature)``, scaled to mean
    1 in every slice.

    Where cells fall into groups, each group has the same weight in sum, however small it is: as an inverse frequency of
    classes, without classes.

    Args:
        features: shape (B, C, H, W[, D]); a slice is one H x W plane.
        mask: cells that count, boolean, shape (B, H, W[, D]). Defaults to all cells.
        temperature: difference of cosines over which cells cease to be alike.
        references: about how many cells of a slice, on a regular grid, each one is compared with at most; also bounds
            how many times the weight of a common cell a rare one can have.

    Returns:
        Weights, shape (B, H, W[, D]); all 1 in a slice whose cells are all alike. Other cells are left out and weigh 0.

    Raises:
        ValueError: When ``mask`` has another shape.
    """
    counted = _mask_of(features, mask)
    # Slices first, (B[, D], cells, C): a matrix product compares all cells of one.
    unit = F.normalize(features.float(), dim=1).movedim((1, 2, 3), (-1, -3, -2))
    there = counted.movedim((1, 2), (-2, -1))
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
