"""The model of a run: the one that validation scored highest, or else the last one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn

from dinomix_monai.core.files import set_aside
from dinomix_monai.core.keys import MetricKeys
from dinomix_monai.models import write_model

__all__ = ["BestModelHandler", "LastModelHandler"]


class BestModelHandler:
    """
    Writes the weights of the network that validation scores, whenever the key metric is higher than ever before.

    The file is a plain state dict on the CPU, which the network loads strictly. The file is replaced in one move, so it
    is complete at every moment. MONAI's ``CheckpointSaver`` writes in place, and a run that it resumes has no memory of
    the best score. A model that an earlier run left there is renamed to ``*.previous.*``.

    NaN is no score: it comes from validation cases that have none of the classes. As long as there has been no score,
    each model replaces the one before with a warning, and ``waited`` stays 0. Once there is a score, NaN counts as a
    lower one.

    A file ``labels.json`` beside the model names the classes, which the weights cannot tell.

    Args:
        path: file to write.
        class_names: names by label value, background first.
        key_metric: name of the metric.
        writes: whether this process writes the file. Of several processes that train together, all but one get
            ``False`` and only remember the best score.
        beside: called before each model is written, for what belongs to it; ``None`` for nothing.

    Attributes:
        best: the highest score so far, ``None`` before the first.
        epoch: the epoch whose model was written last.
        waited: number of evaluations since the best one.
        has_written: whether this run has written a model.
    """

    def __init__(
        self,
        path: str | Path,
        class_names: Sequence[str],
        key_metric: str = MetricKeys.KEY,
        writes: bool = True,
        beside: Callable[[], None] | None = None,
    ) -> None:
        self.path = Path(path)
        self.class_names = list(class_names)
        self.key_metric = key_metric
        self.writes = writes
        self.beside = beside
        self.best: float | None = None
        self.epoch = 0
        self.waited = 0
        self.has_written = False

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to the end of an evaluation."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """
        Compares the score of an evaluation with the best one, and writes the model if its score is higher.

        Raises:
            ValueError: When the evaluator has no metric of that name.
        """
        metrics = engine.state.metrics
        if self.key_metric not in metrics:
            raise ValueError(
                f"key_metric must name a metric of the evaluator ({', '.join(metrics)}), got {str(self.key_metric)!r}."
            )
        score = float(metrics[self.key_metric])
        if math.isnan(score) and self.best is None:
            if not self.has_written and self.writes:
                warnings.warn(
                    "No validation case has any of the classes, so there is no score and each model replaces the one "
                    "before. List cases that have them under `validation` in dataset.json to keep the best.",
                    stacklevel=2,
                )
            self._choose(engine)
        elif self.best is None or score > self.best:
            self.best, self.waited = score, 0
            self._choose(engine)
        else:
            self.waited += 1

    def _choose(self, engine: SupervisedEvaluator) -> None:
        self.epoch = engine.state.epoch
        if self.writes:
            self.write(engine.network)

    def write(self, network: nn.Module) -> None:
        """Writes the weights of a network and the names of the classes."""
        if not self.has_written:
            set_aside(self.path)
        self.has_written = True
        if self.beside is not None:
            self.beside()
        write_model(network, self.path, self.class_names)

    def state_dict(self) -> dict[str, Any]:
        """The attributes that a resumed run goes on with: ``best``, ``epoch``, ``waited`` and ``has_written``."""
        return {name: getattr(self, name) for name in ("best", "epoch", "waited", "has_written")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self.best, self.epoch, self.waited = state["best"], state["epoch"], state["waited"]
        self.has_written = state.get("has_written", state["best"] is not None)


class LastModelHandler:
    """
    Writes the trainer's EMA teacher as the model when the training ends and no validation has chosen one.

    A run without validation cases would leave no model otherwise.

    Args:
        best_model: the handler that writes the best model.
    """

    def __init__(self, best_model: BestModelHandler) -> None:
        self.best_model = best_model

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to the end of the training."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Writes the EMA teacher, if no validation has chosen a model."""
        if self.best_model.best is None:
            warnings.warn(
                f"No validation has chosen a model: {self.best_model.path} is the one of the last epoch. "
                "List cases under `validation` in dataset.json to keep the best.",
                stacklevel=2,
            )
            self.best_model.write(engine.ema_teacher.module)
