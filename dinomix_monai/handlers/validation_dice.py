"""The validation score that chooses the best model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from monai.handlers import MeanDice

from dinomix_monai.core.known_voxels import known_masks

__all__ = ["ValidationDice"]


class ValidationDice(MeanDice):
    """
    ``monai.handlers.MeanDice`` that is NaN where there is nothing to score.

    Where no case has any of the classes, MONAI's metric is 0. That is the score of a model that misses everything, and
    it would be compared with the scores of other models.

    Predictions are moved to where the labels are: :class:`dinomix_monai.engines.WindowInferer` leaves them on the CPU
    when the memory of the GPU does not suffice. A class is scored in the voxels of which the label tells whether they
    have it, and not at all where there are none.

    The Dice of each class, its mean over the cases, stands in ``engine.state.metrics`` as ``val_dice/CLASS``.

    Args:
        class_names: names by label value, background first, of what is scored; ``None`` for no score of each class.
        possible: for each value of a label, which classes it stands for, see
            :meth:`dinomix_monai.volumes.PartialLabels.table`; ``None`` where all labels are complete.
        **kwargs: see ``monai.handlers.MeanDice``; its ``reduction`` must stay the mean.
    """

    def __init__(
        self,
        *args: Any,
        class_names: Sequence[str] | None = None,
        possible: np.ndarray | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.class_names = class_names
        self.possible = possible

    def update(self, output: Sequence[Sequence[torch.Tensor]]) -> None:
        """
        Args:
            output: predictions and labels, each a list of shape (C, H, W[, D]) or a batch of them.
        """
        predictions, labels = output
        pairs = [(each.to(label.device), label) for each, label in zip(predictions, labels)]
        if self.possible is not None:
            pairs = [_all_masks(*pair, self.possible) for pair in pairs]
        super().update([[each for each, _ in pairs], [label for _, label in pairs]])

    def compute(self) -> Any:
        """The mean over classes and then over cases, each over those that have a score; NaN where none has one."""
        scores = self.metric_fn.get_buffer()
        if isinstance(scores, torch.Tensor) and not scores.isfinite().any():
            self._is_reduced = True
            return math.nan
        return super().compute()

    def completed(self, engine: Engine, name: str) -> None:
        """Puts the mean into ``engine.state.metrics``, and that of each class which has a score."""
        super().completed(engine, name)
        tags = [f"val_dice/{class_name}" for class_name in self.class_names or ()]
        for tag in tags:
            engine.state.metrics.pop(tag, None)
        scores = self.metric_fn.get_buffer()
        if tags and isinstance(scores, torch.Tensor):
            means = zip(tags, scores.nanmean(dim=0).tolist())
            engine.state.metrics.update({tag: mean for tag, mean in means if not math.isnan(mean)})


def _all_masks(
    prediction: torch.Tensor, label: torch.Tensor, possible: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of each class, shape (C, H, W[, D]), empty where the label does not tell."""
    pairs = [known_masks(prediction[0], label[0], value, possible) for value in range(possible.shape[1])]
    found, expected = zip(*pairs)
    return torch.stack(found), torch.stack(expected)
