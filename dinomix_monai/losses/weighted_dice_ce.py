"""Dice and cross-entropy with a weight for each voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

from dinomix_monai.core.processes import sum_over_processes
from dinomix_monai.losses.soft_dice import soft_dice

__all__ = ["VoxelWeightedDiceCELoss"]


class VoxelWeightedDiceCELoss(_Loss):
    """
    Sum of soft Dice and cross-entropy, in which a voxel counts as much as its weight says.

    Pseudo-labels need it: ``monai.losses.DiceCELoss`` cannot leave voxels out. Sums run over the whole batch, and under
    ``torch.distributed`` over those of all processes, which then have the same loss and must all compute it. Dice is
    the mean over the foreground classes that have weight in the target: an absent class has no overlap to improve, and
    cross-entropy already speaks for it. Softmax is computed once for both terms.

    *Labels that are not complete* have, beside the classes, codes of sets of classes that a voxel may have
    (:class:`dinomix_monai.volumes.PartialLabels`). Cross-entropy is then that of the set, whose probability is the sum
    over its classes, and Dice of a class leaves out the voxels of which nobody knows whether they have it. This is the
    marginal loss of Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ segmentation",
    Medical Image Analysis 2021, https://arxiv.org/abs/2007.03868. A voxel of such a set weighs as background does, and
    one that may have any class nothing.

    Args:
        class_weight: weight of each class in the cross-entropy, background first; ``None`` for equal ones.
        lambda_dice: weight of the Dice term.
        lambda_ce: weight of the cross-entropy term.
        smooth: added to numerator and denominator of Dice.
        possible: for each value of a label, which classes it stands for, shape (values, C), as
            :meth:`dinomix_monai.volumes.PartialLabels.table` gives it; ``None`` where values are classes.

    Raises:
        ValueError: When a weight is negative, both lambdas are 0, or ``possible`` does not begin with the classes
            themselves.

    Example:
        >>> import torch
        >>> from dinomix_monai.losses import VoxelWeightedDiceCELoss
        >>> label = torch.randint(0, 3, (1, 1, 4, 4, 4))
        >>> logits = 100.0 * torch.nn.functional.one_hot(label[:, 0], 3).movedim(-1, 1)
        >>> round(VoxelWeightedDiceCELoss()(logits, label).item(), 4)
        0.0
    """

    class_weight: torch.Tensor | None
    outside: torch.Tensor

    def __init__(
        self,
        class_weight: Sequence[float] | None = None,
        lambda_dice: float = 1.0,
        lambda_ce: float = 1.0,
        smooth: float = 1e-5,
        possible: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        if min(lambda_dice, lambda_ce) < 0 or lambda_dice + lambda_ce == 0:
            raise ValueError(
                f"lambda_dice and lambda_ce must be >= 0 and not both 0, got {lambda_dice} and {lambda_ce}."
            )
        if class_weight is not None and min(class_weight) < 0:
            raise ValueError(f"class_weight must be >= 0 for each class, got {list(class_weight)}.")
        self.register_buffer("class_weight", None if class_weight is None else torch.as_tensor(class_weight).float())
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce
        self.smooth = smooth
        self.sets = _sets(possible)
        # For each set 1 at the classes that are none of it.
        table = torch.zeros(0) if possible is None else torch.as_tensor(possible)[-len(self.sets) or len(possible) :]
        self.register_buffer("outside", 1 - table.float(), persistent=False)

    def forward(self, input: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        """
        Args:
            input: logits, shape (B, C, H, W[, D]).
            target: label values, shape (B, 1, H, W[, D]); codes of sets where labels are not complete.
            weight: weight of each voxel, same shape as ``target``; ``None`` for 1 everywhere. Where all is 0 the loss
                is 0.

        Raises:
            ValueError: When the shapes do not fit together.
        """
        if target.shape != (input.shape[0], 1, *input.shape[2:]):
            raise ValueError(
                f"target must have shape {(input.shape[0], 1, *input.shape[2:])}, got {tuple(target.shape)}."
            )
        if weight is not None and weight.shape != target.shape:
            raise ValueError(f"weight must have the shape of target {tuple(target.shape)}, got {tuple(weight.shape)}.")
        if self.class_weight is not None and len(self.class_weight) != input.shape[1]:
            raise ValueError(
                f"class_weight must have a weight for each of the {input.shape[1]} channels of input, "
                f"got {len(self.class_weight)}."
            )
        target = target.long()
        log_prob = F.log_softmax(input.float(), dim=1)
        if self.sets:
            return self._marginal(log_prob, target, weight)
        log_prob_target = log_prob.gather(1, target)
        voxel_weight = torch.ones_like(log_prob_target) if weight is None else weight.to(log_prob)

        loss = log_prob_target.new_zeros(())
        if self.lambda_ce:
            loss = loss + self.lambda_ce * self._cross_entropy(log_prob_target, target, voxel_weight)
        if self.lambda_dice:
            given = None if weight is None else voxel_weight
            dice, present = soft_dice(log_prob, target, given, self.smooth, log_prob_target=log_prob_target)
            loss = loss + self.lambda_dice * self._mean_dice_loss(dice, present)
        return loss

    def _marginal(self, log_prob: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        """The loss where some labels are sets of classes."""
        num_classes = log_prob.shape[1]
        weight = torch.ones_like(log_prob[:, :1]) if weight is None else weight.to(log_prob)
        is_known = target < num_classes
        known, prob = target.where(is_known, 0), log_prob.exp()
        # Of the class or the set, and the weight that it has in the cross-entropy.
        of_target, counted = log_prob.gather(1, known), weight
        beside = prob.new_zeros(num_classes)
        # Kept where it is used, as the weights of the classes are.
        outside = self.outside = self.outside.to(prob)
        for code, classes in enumerate(self.sets, start=num_classes):
            is_set = target == code
            of_target = torch.where(is_set, log_prob[:, classes].logsumexp(dim=1, keepdim=True), of_target)
            if len(classes) == num_classes:
                counted = counted.masked_fill(is_set, 0)
            # What is known to be none of the other classes.
            found = (prob * (weight * is_set)).sum(dim=[0, *range(2, prob.ndim)])
            beside = beside + found * outside[code - num_classes]
        loss = prob.new_zeros(())
        if self.lambda_ce:
            loss = loss + self.lambda_ce * self._cross_entropy(of_target, known, counted)
        if self.lambda_dice:
            dice, present = soft_dice(log_prob, known, weight * is_known, self.smooth, beside)
            loss = loss + self.lambda_dice * self._mean_dice_loss(dice, present)
        return loss

    @staticmethod
    def _mean_dice_loss(dice: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
        counted = (present > 0)[1:].to(dice)
        return ((1 - dice[1:]) * counted).sum() / counted.sum().clamp_min(1)

    def _cross_entropy(
        self, log_prob_target: torch.Tensor, target: torch.Tensor, voxel_weight: torch.Tensor
    ) -> torch.Tensor:
        if self.class_weight is not None:
            # Normalized as F.cross_entropy does, but over the voxels that count.
            # Kept where it is used: a copy to a GPU in every step would wait for it.
            self.class_weight = self.class_weight.to(voxel_weight)
            voxel_weight = voxel_weight * self.class_weight[target]
        sums = torch.stack([(log_prob_target * voxel_weight).sum(), voxel_weight.sum()])
        total_log_prob, total = sum_over_processes(sums)
        return -total_log_prob / total.clamp_min(1e-8)


def _sets(possible: np.ndarray | None) -> list[list[int]]:
    """The classes of each set, in the order of their codes."""
    if possible is None:
        return []
    table = np.asarray(possible, dtype=bool)
    if (
        table.ndim != 2
        or len(table) < table.shape[1]
        or not np.array_equal(table[: table.shape[1]], np.eye(table.shape[1]))
    ):
        raise ValueError(
            f"possible must have a row for each class and then one for each set, got shape {table.shape}. "
            "PartialLabels.table makes it."
        )
    return [np.flatnonzero(row).tolist() for row in table[table.shape[1] :]]
