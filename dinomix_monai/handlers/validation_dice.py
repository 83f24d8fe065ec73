"""The validation score that chooses the best model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from monai.handlers import MeanDice

from dinomix_monai.core.known_voxels import is_known

__all__ = ["ValidationDice"]


class ValidationDice(MeanDice):
    """
    ``monai.handlers.MeanDice`` that is NaN where there is nothing to score.

    Where no case has any of the classes, MONAI's metric is 0. That is the score of a model that misses everything, and
    it would be compared with the scores of other models.

    Predictions are moved to where the labels are: :class:`dinomix_monai.engines.WindowInferer` leaves them on the CPU
    when the memory of the GPU does not suffice. A class is scored in the voxels of which the label tells whether they
    have it, and not at all where there are none.

    Args:
        possible: for each value of a label, which classes it stands for, see
            :meth:`dinomix_monai.volumes.PartialLabels.table`; ``None`` where all labels are complete.
        **kwargs: see ``monai.handlers.MeanDice``; its ``reduction`` must stay the mean.
    """

    def __init__(self, *args: Any, possible: np.ndarray | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.possible = possible

    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """
        Args:
            output: predictions and labels, each a list of shape (C, H, W[, D]) or a batch of them.
        """
        predictions, labels = output
        pairs = [(each.to(label.device), label) for each, label in zip(predictions, labels)]
        if self.possible is not None:
            pairs = [_known_masks(*pair, self.possible) for pair in pairs]
        super().update([[each for each, _ in pairs], [label for _, label in pairs]])

    def compute(self) -> Any:
        """The mean over classes and then over cases, each over those that have a score; NaN where none has one."""
        scores = self.metric_fn.get_buffer()
        if isinstance(scores, torch.Tensor) and not scores.isfinite().any():
            self._is_reduced = True
            return math.nan
        return super().compute()


def _known_masks(
    prediction: torch.Tensor, label: torch.Tensor, possible: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of each class, shape (C, H, W[, D]), empty where the label does not tell."""
    values = range(possible.shape[1])
    found = [(prediction[0] == value) & is_known(label[0], value, possible) for value in values]
    return torch.stack(found), torch.stack([label[0] == value for value in values])
