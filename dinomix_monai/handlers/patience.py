"""The end of a training that brings nothing new."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EarlyStopping
from monai.engines import SupervisedEvaluator

from dinomix_monai.keys import MetricKeys

__all__ = ["PatienceHandler"]


class PatienceHandler:
    """
    Ends the training when the key metric has not been higher than ever before for some validations in a row.

    It is Ignite's ``EarlyStopping`` with a state that a resumed run goes on with, and it is attached to the trainer:
    MONAI's ``EarlyStopHandler`` is attached to the validator and given the trainer, which no configuration can do,
    since the trainer is given the validator. A metric that is NaN is worse than any number.

    Args:
        validator: evaluator that computes the metric.
        patience: validations to wait for a better one; ``None`` for ever.
        key_metric: name of the metric.

    Raises:
        ValueError: When ``patience`` is less than 1.
    """

    def __init__(
        self, validator: SupervisedEvaluator, patience: int | None = None, key_metric: str = MetricKeys.KEY
    ) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be >= 1 or None, got {patience}.")
        self.validator = validator
        self.patience = patience
        self.key_metric = key_metric
        # Its trainer is the one that it is attached to; until then it needs some engine.
        self._stopping = EarlyStopping(patience or 1, self._score, trainer=Engine(lambda engine, batch: None))

    def attach(self, engine: Engine) -> None:
        """Attaches to the start of the training and to the end of each validation; attach it after the loader."""
        if self.patience is not None:
            self._stopping.trainer = engine
            self.validator.add_event_handler(Events.COMPLETED, self._stopping)
            engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Ends a run that is resumed after its patience was over."""
        if self.patience is not None and self._stopping.counter >= self.patience:
            engine.terminate()

    def _score(self, validator: SupervisedEvaluator) -> float:
        value = float(validator.state.metrics[self.key_metric])
        return -math.inf if math.isnan(value) else value

    def state_dict(self) -> dict[str, Any]:
        """Best value, and the validations since then."""
        return {"best": self._stopping.best_score, "waited": self._stopping.counter}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self._stopping.best_score, self._stopping.counter = state["best"], state["waited"]
