"""Updates that the server must not take in."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["UpdateCheck"]

Arrays = Mapping[str, np.ndarray]


class UpdateCheck:
    """
    Says what is wrong with the update of a site.

    It stops mistakes and broken machines: names or shapes that the model has not, NaN, infinity, and changes far larger
    than training makes. A site that means harm can stay below any bound.

    Args:
        norm_bound: largest L2 norm of the change over all weights, 0 for no bound.

    Raises:
        ValueError: When ``norm_bound`` is negative.
    """

    def __init__(self, norm_bound: float = 0.0) -> None:
        if norm_bound < 0:
            raise ValueError(f"norm_bound must be >= 0, got {norm_bound}.")
        self.norm_bound = norm_bound

    def __call__(self, update: Arrays, model: Arrays, is_difference: bool) -> str | None:
        """
        Args:
            update: arrays by name; some of the model's may be missing.
            model: the global model that the site was sent.
            is_difference: whether the update is what has changed, and not the weights themselves.

        Returns:
            The reason to refuse it, or ``None``.
        """
        squares = 0.0
        for name, value in update.items():
            if name not in model:
                return f"it has {name}, which the model has not"
            value, reference = np.asarray(value), np.asarray(model[name])
            if value.shape != reference.shape:
                return f"{name} must have shape {reference.shape}, got {value.shape}"
            change = value.astype(np.float64)
            if not np.isfinite(change).all():
                return f"{name} has values that are not finite"
            squares += float(((change if is_difference else change - reference) ** 2).sum())
        if self.norm_bound and squares**0.5 > self.norm_bound:
            return f"the norm of its change must be at most {self.norm_bound:g}, got {squares**0.5:.4g}"
        return None
