"""The validation score that chooses the best model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from monai.handlers import MeanDice

__all__ = ["ValidationDice"]


class ValidationDice(MeanDice):
    """
    ``monai.handlers.MeanDice`` that is NaN where there is nothing to score.

    Where no case has any of the classes, MONAI's metric is 0. That is the score of a model that misses everything, and
    it would be compared with the scores of other models.

    Predictions are moved to where the labels are: :class:`dinomix_monai.engines.WindowInferer` leaves them on the CPU
    when the memory of the GPU does not suffice.

    Args:
        **kwargs: see ``monai.handlers.MeanDice``; its ``reduction`` must stay the mean.
    """

    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """
        Args:
            output: predictions and labels, each a list of shape (C, H, W[, D]) or a batch of them.
        """
        predictions, labels = output
        super().update([[each.to(label.device) for each, label in zip(predictions, labels)], labels])

    def compute(self) -> Any:
        """The mean over classes and then over cases, each over those that have a score; NaN where none has one."""
        scores = self.metric_fn.get_buffer()
        if isinstance(scores, torch.Tensor) and not scores.isfinite().any():
            self._is_reduced = True
            return math.nan
        return super().compute()
