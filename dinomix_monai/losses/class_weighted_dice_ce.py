"""Dice and cross-entropy with a weight for each class that changes from step to step."""

from __future__ import annotations

import torch
from monai.losses import DiceLoss
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

__all__ = ["ClassWeightedDiceCELoss"]


class ClassWeightedDiceCELoss(_Loss):
    """
    Sum of soft Dice and cross-entropy, both weighted by class, with weights that come with each call.

    In :class:`VoxelWeightedDiceCELoss` and in MONAI's losses the weights of the classes are fixed. Cross-entropy is the
    mean that ``torch.nn.functional.cross_entropy`` takes with the same weights, and 0 where no voxel has any weight.
    Dice is over the whole batch, and the mean of ``weight_c * (1 - dice_c)`` over the foreground classes.

    Reference: Wang and Li, "DHC: Dual-debiased Heterogeneous Co-training Framework for Class-imbalanced Semi-supervised
    Medical Image Segmentation", MICCAI 2023, https://arxiv.org/abs/2307.11960.

    Args:
        lambda_dice: weight of the Dice term.
        lambda_ce: weight of the cross-entropy term.
        smooth: added to numerator and denominator of Dice; the reference's by default.

    Raises:
        ValueError: When a lambda is negative or both are 0.
    """

    def __init__(self, lambda_dice: float = 1.0, lambda_ce: float = 1.0, smooth: float = 1.0) -> None:
        super().__init__()
        if min(lambda_dice, lambda_ce) < 0 or lambda_dice + lambda_ce == 0:
            raise ValueError(
                f"lambda_dice and lambda_ce must be >= 0 and not both 0, got {lambda_dice} and {lambda_ce}."
            )
        self.lambda_dice = lambda_dice
        self.lambda_ce = lambda_ce
        self.dice = DiceLoss(
            include_background=False,
            to_onehot_y=True,
            softmax=True,
            batch=True,
            smooth_nr=smooth,
            smooth_dr=smooth,
            reduction="none",
        )

    def forward(
        self, input: torch.Tensor, target: torch.Tensor, class_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        Args:
            input: logits, shape (B, C, H, W[, D]).
            target: label values, shape (B, 1, H, W[, D]).
            class_weight: weight of each class, background first, shape (C,); ``None`` for 1 each.
        """
        # In single precision, because under autocast the sum over all voxels of a batch would overflow.
        input = input.float()
        weight = input.new_ones(input.shape[1]) if class_weight is None else class_weight.to(input)
        loss = input.new_zeros(())
        if self.lambda_ce:
            label = target[:, 0].long()
            total = F.cross_entropy(input, label, weight, reduction="sum")
            loss = loss + self.lambda_ce * total / weight[label].sum().clamp_min(1e-8)
        if self.lambda_dice:
            loss = loss + self.lambda_dice * (weight[1:] * self.dice(input, target).flatten()).mean()
        return loss
