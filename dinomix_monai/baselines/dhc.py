"""DHC: class weights that follow how rare and how difficult a class is, and the loss that takes them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss

from dinomix_monai.core.processes import sum_over_processes
from dinomix_monai.losses import soft_dice

__all__ = ["ClassWeightedDiceCELoss", "DifficultyWeighting", "DistributionWeighting"]

_EPSILON = 1e-8


class DistributionWeighting(nn.Module):
    """
    Distribution-aware weights: classes that a student predicts rarely count more.

    With ``n_c`` voxels of class ``c``, ``r_c = ln(max_k n_k / n_c)`` and ``w_c = C r_c / max_k r_k``, so the most
    frequent class, which is the background, has weight 0. The weights of a step are a moving average: it begins with
    the labeled set and goes on with the student's own predictions for unlabeled patches.

    Reference: Wang and Li, "DHC", MICCAI 2023, https://arxiv.org/abs/2307.11960 (DistDW).

    Args:
        labeled_voxels: voxels of each class over the labeled set, background first; sets the number of classes.
        decay: share of the average that one step keeps.

    Raises:
        ValueError: When there are fewer than two classes or ``decay`` is not in [0, 1).
    """

    weights: torch.Tensor

    def __init__(self, labeled_voxels: Sequence[float], decay: float = 0.99) -> None:
        super().__init__()
        if len(labeled_voxels) < 2:
            raise ValueError(f"labeled_voxels must list background and each class, got {labeled_voxels}.")
        _check_decay(decay)
        self.decay = decay
        self.register_buffer("weights", self._rarity(torch.as_tensor(labeled_voxels, dtype=torch.float)))

    @staticmethod
    def _rarity(counts: torch.Tensor) -> torch.Tensor:
        ratio = ((counts.max() + _EPSILON) / (counts + _EPSILON)).log()
        return len(counts) * ratio / ratio.max().clamp_min(_EPSILON)

    @torch.no_grad()
    def forward(self, logits: torch.Tensor, label: torch.Tensor, unlabeled_logits: torch.Tensor | None) -> torch.Tensor:
        """
        Args:
            logits: the student's for labeled patches, shape (B, C, H, W[, D]); not used.
            label: their label values, shape (B, 1, H, W[, D]); not used.
            unlabeled_logits: the student's for unlabeled patches; ``None`` leaves the weights as they are.

        Returns:
            Weight of each class, shape (C,).
        """
        self.to(logits.device)
        if unlabeled_logits is not None:
            found = torch.bincount(unlabeled_logits.argmax(1).flatten(), minlength=len(self.weights))
            rarity = self._rarity(sum_over_processes(found).float())
            self.weights = self.decay * self.weights + (1 - self.decay) * rarity
        return self.weights


class DifficultyWeighting(nn.Module):
    """
    Difficulty-aware weights: classes that a student segments badly, or begins to forget, count more.

    ``d_c`` is the Dice of the student's prediction for the labeled patches of a step. Its gains ``l_c`` and losses
    ``u_c`` from step to step are the moving averages of ``(d_c - d'_c) ln(d_c / d'_c)`` where it rose and where it did
    not, with ``d'_c`` of the step before. The weight is ``(u_c / l_c) ** alpha`` times the moving average of
    ``1 - d_c``, scaled so that the greatest is C. A class that a step's labels do not show keeps what it had; in
    the reference it has a perfect Dice or one of 0, which says nothing of it.

    Reference: Wang and Li, "DHC", MICCAI 2023, https://arxiv.org/abs/2307.11960 (DiffDW), in the form of its code.

    Args:
        num_classes: number of classes, background included.
        decay: share of the averages that one step keeps.
        alpha: exponent of the ratio.

    Raises:
        ValueError: When ``decay`` is not in [0, 1) or ``alpha`` is negative.
    """

    gains: torch.Tensor
    losses: torch.Tensor
    last_dice: torch.Tensor
    unreached: torch.Tensor

    def __init__(self, num_classes: int, decay: float = 0.98, alpha: float = 0.2) -> None:
        super().__init__()
        _check_decay(decay)
        if alpha < 0:
            raise ValueError(f"alpha must be >= 0, got {alpha}.")
        self.decay, self.alpha = decay, alpha
        self.register_buffer("gains", torch.zeros(num_classes))
        self.register_buffer("losses", torch.zeros(num_classes))
        self.register_buffer("last_dice", torch.full((num_classes,), _EPSILON))
        self.register_buffer("unreached", torch.ones(num_classes))

    @torch.no_grad()
    def forward(self, logits: torch.Tensor, label: torch.Tensor, unlabeled_logits: torch.Tensor | None) -> torch.Tensor:
        """
        Args:
            logits: the student's for labeled patches, shape (B, C, H, W[, D]).
            label: their label values, shape (B, 1, H, W[, D]).
            unlabeled_logits: the student's for unlabeled patches; not used.

        Returns:
            Weight of each class, shape (C,).
        """
        self.to(logits.device)
        dice, present = _dice(logits.argmax(1), label[:, 0].long(), logits.shape[1])
        change = dice - self.last_dice
        amount = change * (dice / self.last_dice).log()
        for name, value in {
            "gains": self._followed(self.gains, amount * (change > 0)),
            "losses": self._followed(self.losses, amount * (change <= 0)),
            "unreached": self._followed(self.unreached, 1 - dice),
            "last_dice": dice,
        }.items():
            setattr(self, name, torch.where(present, value, getattr(self, name)))
        weights = ((self.losses + _EPSILON) / (self.gains + _EPSILON)) ** self.alpha * self.unreached
        return len(weights) * weights / weights.max().clamp_min(_EPSILON)

    def _followed(self, average: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return self.decay * average + (1 - self.decay) * value


class ClassWeightedDiceCELoss(_Loss):
    """
    Sum of soft Dice and cross-entropy, both weighted by class, with weights that come with each call.

    In :class:`dinomix_monai.losses.VoxelWeightedDiceCELoss` and in MONAI's losses the weights of the classes are fixed.
    Cross-entropy is the mean that ``torch.nn.functional.cross_entropy`` takes with the same weights, and 0 where no
    voxel has any weight.
    Dice is over the whole batch, and the mean of ``weight_c * (1 - dice_c)`` over the foreground classes. Under
    ``torch.distributed`` both are over the batches of all processes, as are the counts of the weightings.

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
        self.smooth = smooth

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
        log_prob, target = F.log_softmax(input.float(), dim=1), target.long()
        weight = log_prob.new_ones(log_prob.shape[1]) if class_weight is None else class_weight.to(log_prob)
        loss = log_prob.new_zeros(())
        if self.lambda_ce:
            voxel_weight = weight[target]
            sums = torch.stack([(log_prob.gather(1, target) * voxel_weight).sum(), voxel_weight.sum()])
            total_log_prob, total = sum_over_processes(sums)
            loss = loss - self.lambda_ce * total_log_prob / total.clamp_min(1e-8)
        if self.lambda_dice:
            dice, _ = soft_dice(log_prob, target, smooth=self.smooth)
            loss = loss + self.lambda_dice * (weight[1:] * (1 - dice[1:])).mean()
        return loss


def _dice(prediction: torch.Tensor, label: torch.Tensor, num_classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Dice of each class over a batch, never quite 0, and whether the label has the class."""
    parts = (prediction.flatten(), label.flatten(), label[prediction == label])
    counts = torch.stack([torch.bincount(values, minlength=num_classes) for values in parts])
    predicted, present, overlap = sum_over_processes(counts)
    dice = (2 * overlap + _EPSILON) / (predicted + present + _EPSILON)
    return dice.float(), present > 0


def _check_decay(decay: float) -> None:
    if not 0 <= decay < 1:
        raise ValueError(f"decay must be in [0, 1), got {decay}.")
