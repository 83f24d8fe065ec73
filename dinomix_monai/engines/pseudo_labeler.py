"""Pseudo-labels with a confidence threshold for each class, in the proportions of the labeled set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from monai.utils import convert_to_tensor
from torch import nn

from dinomix_monai.core.class_sums import class_sums
from dinomix_monai.core.processes import process_count, sum_over_processes

__all__ = ["PseudoLabeler"]

# A class that is all but lost, or that is seen everywhere, is moved by this factor at most.
_LARGEST_RATIO = 5.0


class PseudoLabeler(nn.Module):
    """
    Labels and weights from the logits of an EMA teacher.

    *Alignment*: the probability of class ``c`` is multiplied by ``(labeled share_c / predicted share_c) ** alignment``,
    and all are normalized again. The first is its share of the voxels of labeled patches that are cut as the unlabeled
    ones are, the second the moving average of its predicted probability, so a class that the teacher begins to forget
    is brought back, and one whose share is right stays as it is. It presumes that unlabeled scans show the same organs
    as labeled ones, and about as much of the background.

    *Thresholds*: a voxel counts when the probability of its most probable class reaches the threshold of that class,
    ``threshold * confidence_c / max_k confidence_k``, at least ``floor``. The confidence of a class is the moving
    average of the highest probability over the voxels that are predicted as that class. This departs from FreeMatch in
    three ways. FreeMatch averages the probability of a class over all samples, which in segmentation is the class's
    share of the voxels: a small organ's threshold would be close to 0, and all its guesses would count. FreeMatch also
    learns the threshold of the most confident class, which is a constant here, and it has no floor.

    The module moves to the device of the logits. Under ``torch.distributed`` both averages follow the batches of all
    processes, which must be of one size.

    References: Berthelot et al., "ReMixMatch", ICLR 2020, https://arxiv.org/abs/1911.09785 (alignment); Wang et al.,
    "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023, https://arxiv.org/abs/2205.07246
    (thresholds).

    Args:
        num_classes: number of classes, background included.
        threshold: threshold of the most confident class.
        floor: least threshold of any class.
        decay: decay of the moving averages.
        alignment: strength of the alignment, 0 for none.
        labeled_voxels: voxels of each class in labeled patches, background first, as
            :func:`dinomix_monai.data.patch_voxels` gives them; needed for the alignment.
        weight: weight of a voxel that counts.
        possible: for each value of a label, which classes it stands for, shape (values, C), see
            :meth:`dinomix_monai.volumes.PartialLabels.table`; needed for :meth:`complete` alone.
        clean_label: transform of the label map (1, H, W[, D]) of each patch, such as MONAI's
            ``KeepLargestConnectedComponent``; ``None`` for none.

    Raises:
        ValueError: When not ``0 <= floor <= threshold <= 1``, ``alignment`` is negative, ``weight`` is not positive, or
            ``labeled_voxels`` is missing or not one number for each class.
    """

    class_confidence: torch.Tensor
    counts: torch.Tensor
    possible: torch.Tensor
    predicted_shares: torch.Tensor
    labeled_shares: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        threshold: float = 0.9,
        floor: float = 0.5,
        decay: float = 0.99,
        alignment: float = 0.0,
        labeled_voxels: Sequence[float] | None = None,
        weight: float = 1.0,
        clean_label: Callable[[torch.Tensor], torch.Tensor] | None = None,
        possible: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= floor <= threshold <= 1:
            raise ValueError(f"floor and threshold must be 0 <= floor <= threshold <= 1, got {floor} and {threshold}.")
        if alignment < 0:
            raise ValueError(f"alignment must be >= 0, got {alignment}.")
        if alignment > 0 and (labeled_voxels is None or len(labeled_voxels) != num_classes):
            raise ValueError(
                f"labeled_voxels must have the voxels of {num_classes} classes for an alignment, got {labeled_voxels}."
            )
        if weight <= 0:
            raise ValueError(f"weight must be > 0, got {weight}.")
        self.threshold, self.floor, self.decay, self.alignment = threshold, floor, decay, alignment
        self.weight, self.clean_label = weight, clean_label
        self.register_buffer("class_confidence", torch.ones(num_classes))
        # Voxels of each class that count, and all of them.
        self.register_buffer("counts", torch.zeros(2, num_classes), persistent=False)
        table = torch.eye(num_classes, dtype=torch.bool) if possible is None else torch.as_tensor(possible)
        self.register_buffer("possible", table, persistent=False)
        if alignment:
            # One voxel more, so that a class without labeled voxels has a share.
            counts = torch.as_tensor(labeled_voxels).float() + 1
            self.register_buffer("labeled_shares", counts / counts.sum(), persistent=False)
            self.register_buffer("predicted_shares", self.labeled_shares.clone())

    def thresholds(self) -> torch.Tensor:
        """Present threshold of each class, shape (C,)."""
        return (self.threshold * self.class_confidence / self.class_confidence.max()).clamp_min(self.floor)

    @torch.no_grad()
    def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            logits: shape (B, C, H, W[, D]).

        Returns:
            Label values and weights in {0, ``weight``}, each of shape (B, 1, H, W[, D]).
        """
        self.to(logits.device)
        probabilities = logits.float().softmax(dim=1)
        if self.alignment:
            probabilities = self._align(probabilities)
        confidence, label = probabilities.max(dim=1, keepdim=True)
        sums = self._class_sums(label, torch.ones_like(confidence), confidence)
        self._update_class_confidence(sums)
        weight = self.weight * (confidence >= self.thresholds()[label]).to(confidence)
        if self.clean_label is not None:
            label = torch.stack([convert_to_tensor(self.clean_label(one)) for one in label]).to(label)
            sums = self._class_sums(label, torch.ones_like(confidence))
        self.counts += torch.cat([self._class_sums(label, (weight > 0).to(weight)), sums[:1]])
        return label, weight

    def take_confident_shares(self) -> torch.Tensor:
        """
        The share of the voxels of each class whose label counts, in what this process has labeled since the last call.

        Returns:
            Shape (C,); NaN for a class that no voxel was labeled as.
        """
        counted, voxels = self.counts
        self.counts = torch.zeros_like(self.counts)
        return counted / voxels

    @property
    def completes(self) -> bool:
        """Whether labels may have codes of sets of classes, which :meth:`complete` replaces."""
        return len(self.possible) > len(self.class_confidence)

    @torch.no_grad()
    def complete(self, label: torch.Tensor, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Fills labels that are not complete by the most probable of the classes that are possible.

        What somebody has drawn stays, and a voxel that nobody has looked for some classes on becomes background or one
        of these. Their probabilities are normalized among each other; moving averages and alignment, which are those of
        unlabeled patches, have no part in it.

        Args:
            label: label values with codes of sets, shape (B, 1, H, W[, D]).
            logits: of the EMA teacher, shape (B, C, H, W[, D]).

        Returns:
            Label values, all of classes, and weights: 1 where a class was drawn, or is the only one that is possible,
            and otherwise ``weight`` where the probability reaches the threshold of its class.
        """
        self.to(logits.device)
        num_classes = len(self.class_confidence)
        is_known, values = label < num_classes, label.long()
        allowed = self.possible[values[:, 0]].movedim(-1, 1)
        probabilities = logits.float().masked_fill(~allowed, -math.inf).softmax(dim=1)
        confidence, guess = probabilities.max(dim=1, keepdim=True)
        weight = self.weight * (confidence >= self.thresholds()[guess]).to(confidence)
        return torch.where(is_known, values, guess), weight.masked_fill(is_known, 1)

    def _align(self, probabilities: torch.Tensor) -> torch.Tensor:
        found = sum_over_processes(probabilities.mean(dim=[0, *range(2, probabilities.ndim)])) / process_count()
        followed = self.decay * self.predicted_shares + (1 - self.decay) * found
        # An average that has once been NaN would be so for ever.
        self.predicted_shares = torch.where(found.isfinite().all(), followed, self.predicted_shares)
        ratio = (self.labeled_shares / self.predicted_shares).clamp(1 / _LARGEST_RATIO, _LARGEST_RATIO)
        aligned = probabilities * (ratio**self.alignment).view(1, -1, *[1] * (probabilities.ndim - 2))
        return aligned / aligned.sum(dim=1, keepdim=True)

    def _update_class_confidence(self, sums: torch.Tensor) -> None:
        """By the voxels of each class and the sums of their confidences, shape (2, C)."""
        voxels, total = sum_over_processes(sums)
        mean = total / voxels.clamp_min(1)
        is_seen = (voxels > 0) & mean.isfinite()
        followed = self.decay * self.class_confidence + (1 - self.decay) * mean
        self.class_confidence = torch.where(is_seen, followed, self.class_confidence)

    def _class_sums(self, label: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
        """Of each map the sum over the voxels of each class, shape (maps, C)."""
        return torch.stack([class_sums(values, label, len(self.class_confidence)) for values in maps])
