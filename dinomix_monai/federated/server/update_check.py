"""Updates that the server must not average."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["UpdateCheck"]


class UpdateCheck:
    """
    Finds reasons to refuse the update of a site.

    This stops mistakes and broken machines: names or shapes that the model does not have, NaN, infinity, and changes
    far larger than those of a training. A site that means harm can stay below any bound.

    Args:
        norm_bound: largest L2 norm of the change over all weights, 0 for no bound.

    Raises:
        ValueError: When ``norm_bound`` is negative.

    Example:
        >>> model = {"w": np.zeros(2)}
        >>> UpdateCheck(norm_bound=1.0).reason_to_refuse({"w": np.array([3.0, 4.0])}, model, is_difference=True)
        'the norm of its change must be at most 1, got 5'
    """

    def __init__(self, norm_bound: float = 0.0) -> None:
        if norm_bound < 0:
            raise ValueError(f"norm_bound must be >= 0, got {norm_bound}.")
        self.norm_bound = norm_bound

    def reason_to_refuse(
        self, update: Mapping[str, np.ndarray], model: Mapping[str, np.ndarray], is_difference: bool
    ) -> str | None:
        """
        Checks one update.

        Args:
            update: arrays by name; some of the model's may be missing.
            model: weights of the global model that the site was sent.
            is_difference: whether the update holds the change of the weights and not the weights themselves.

        Returns:
            The reason to refuse the update as a part of a sentence, or ``None`` if there is none.
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
