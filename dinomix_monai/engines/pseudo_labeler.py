"""Pseudo-labels with a confidence threshold for each class."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["PseudoLabeler"]


class PseudoLabeler(nn.Module):
    """
    Labels and weights from the logits of an EMA teacher.

    A voxel counts (weight 1) when the probability of its most probable class reaches the threshold of that class. The
    thresholds follow the classes' learning status, the moving average of the confidence of voxels predicted as that
    class: ``threshold * status_c / max_k status_k``, at least ``floor``. It moves to where the logits are.

    Reference: Wang et al., "FreeMatch: Self-adaptive Thresholding for Semi-supervised Learning", ICLR 2023,
    https://arxiv.org/abs/2205.07246.

    Args:
        num_classes: number of classes, background included.
        threshold: threshold of the most confident class.
        floor: least threshold of any class.
        decay: decay of the moving averages.

    Raises:
        ValueError: When not ``0 <= floor <= threshold <= 1``.
    """

    status: torch.Tensor

    def __init__(self, num_classes: int, threshold: float = 0.9, floor: float = 0.5, decay: float = 0.99) -> None:
        super().__init__()
        if not 0 <= floor <= threshold <= 1:
            raise ValueError(f"floor and threshold must be 0 <= floor <= threshold <= 1, got {floor} and {threshold}.")
        self.threshold, self.floor, self.decay = threshold, floor, decay
        self.register_buffer("status", torch.ones(num_classes))

    def thresholds(self) -> torch.Tensor:
        """Present threshold of each class, shape (C,)."""
        return (self.threshold * self.status / self.status.max()).clamp_min(self.floor)

    @torch.no_grad()
    def forward(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            logits: shape (B, C, H, W[, D]).

        Returns:
            Label values and weights in {0, 1}, each of shape (B, 1, H, W[, D]).
        """
        self.to(logits.device)
        confidence, label = logits.float().softmax(dim=1).max(dim=1, keepdim=True)
        self._follow(confidence.flatten(), label.flatten())
        return label, (confidence >= self.thresholds()[label]).to(confidence)

    def _follow(self, confidence: torch.Tensor, label: torch.Tensor) -> None:
        zeros = torch.zeros_like(self.status)
        voxels = zeros.index_add(0, label, torch.ones_like(confidence))
        mean = zeros.index_add(0, label, confidence) / voxels.clamp_min(1)
        self.status = torch.where(voxels > 0, self.decay * self.status + (1 - self.decay) * mean, self.status)
