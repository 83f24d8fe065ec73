"""A linear classifier of feature vectors."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["LinearProbe"]


class LinearProbe(nn.Module):
    r"""
    Multinomial logistic regression with class weights, on standardized features.

    .. math::
        \min_{W, b} \; \frac{\sum_i w_{y_i} \, \mathrm{CE}(W x_i + b, y_i)}{\sum_i w_{y_i}} + \lambda \|W\|^2
        \qquad w_c = \left(\max_k n_k / n_c\right)^\rho

    A linear classifier has little freedom, so its scores tell what the features know and not what a network could learn
    from them. The class weights decide over small organs: without them hardly a point would be given to these. A class
    without a point among the given ones is never predicted.

    Reference: Alain and Bengio, "Understanding intermediate layers using linear classifier probes", 2017,
    https://arxiv.org/abs/1610.01644.

    Args:
        num_features: number F of features.
        num_classes: number C of classes, background included.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, num_features: int, num_classes: int) -> None:
        super().__init__()
        # From zero, and without a draw of random numbers.
        self.linear = nn.utils.skip_init(nn.Linear, num_features, num_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("std", torch.ones(num_features))

    @classmethod
    def fit(
        cls,
        features: torch.Tensor,
        labels: torch.Tensor,
        num_classes: int,
        voxels: torch.Tensor | None = None,
        class_weight_power: float = 0.5,
        penalty: float = 1e-3,
        iterations: int = 40,
    ) -> LinearProbe:
        """
        Fits a probe by L-BFGS, from zero, so the same points give the same probe.

        Args:
            features: shape (N, F).
            labels: class of each point, shape (N,).
            num_classes: number C of classes, background included.
            voxels: number of voxels of each class, shape (C,), that the points were drawn from; ``None`` for the points
                themselves. The result is that of all voxels, but for the draw.
            class_weight_power: exponent of the class weights; 0 for all points alike.
            penalty: weight of the squared length of W.
            iterations: largest number of iterations.

        Raises:
            ValueError: When there are no points, or features and labels do not belong together.
        """
        if features.ndim != 2 or labels.shape != features.shape[:1] or not len(labels):
            raise ValueError(
                f"features and labels must have shapes (N, F) and (N,) with N > 0, got {tuple(features.shape)} and "
                f"{tuple(labels.shape)}."
            )
        probe = cls(features.shape[1], num_classes).to(features.device)
        probe.mean, probe.std = features.mean(0), features.std(0, correction=0) + 1e-5
        inputs = (features - probe.mean) / probe.std
        counts = torch.bincount(labels, minlength=num_classes).float()
        total = counts if voxels is None else voxels.to(counts)
        # Each point stands for so many voxels of its class.
        weight = (total.max() / total.clamp_min(1)) ** class_weight_power * total / counts.clamp_min(1)
        optimizer = torch.optim.LBFGS(
            probe.linear.parameters(), max_iter=iterations, history_size=8, line_search_fn="strong_wolfe"
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(probe.linear(inputs), labels, weight=weight)
            loss = loss + penalty * probe.linear.weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)  # type: ignore[arg-type]  # a tensor is what it takes
        probe.requires_grad_(False)
        probe.linear.bias[counts == 0] = -torch.inf
        return probe

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """
        Args:
            features: shape (..., F).

        Returns:
            Logits, shape (..., C); minus infinity for classes that the probe has not seen.
        """
        return self.linear((features - self.mean) / self.std)
