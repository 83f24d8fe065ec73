"""The best model, and the state that a run needs to go on."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from dinomix_monai.core.keys import MetricKeys
from dinomix_monai.core.tensor_file import read_tensor_file, write_tensor_file
from dinomix_monai.handlers.schedules import fast_forward_scheduler
from dinomix_monai.models import write_model

__all__ = ["BestModelHandler", "LastModelHandler", "RunStateLoader", "RunStateSaver"]


class BestModelHandler:
    """
    Writes the weights of the network that validation scores, whenever the key metric is higher than ever before.

    The file is a plain state dict on the CPU, which the network loads strictly. It is replaced in one move, so it is
    complete at every moment. MONAI's ``CheckpointSaver`` writes in place, and a resumed run of it begins with no memory
    of the best. A model that an earlier run left there is renamed.

    NaN is no score. As long as there is none, because no validation case has any of the classes, each model replaces
    the one before, with a warning, and nothing is waited for. Behind a number it is worse than that.

    ``labels.json`` beside it names the classes, which the weights cannot tell.

    Args:
        path: file to write.
        class_names: names by label value, background first.
        key_metric: name of the metric.
        writes: whether to write; ``False`` in all but one of several processes that train together, which only
            remember the best value.

    Attributes:
        best: the highest value so far, ``None`` before the first.
        epoch: when the model was written.
        waited: evaluations since the best one.
        has_written: whether there is a model of this run.
    """

    def __init__(
        self, path: str | Path, class_names: Sequence[str], key_metric: str = MetricKeys.KEY, writes: bool = True
    ) -> None:
        self.path = Path(path)
        self.class_names = list(class_names)
        self.key_metric = key_metric
        self.writes = writes
        self.best: float | None = None
        self.epoch = 0
        self.waited = 0
        self.has_written = False

    def attach(self, engine: Engine) -> None:
        """Attaches to the end of an evaluation."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: SupervisedEvaluator) -> None:
        """
        Compares, and writes if better.

        Raises:
            ValueError: When the evaluator has no metric of that name.
        """
        metrics = engine.state.metrics
        if self.key_metric not in metrics:
            raise ValueError(
                f"key_metric must name a metric of the evaluator ({', '.join(metrics)}), got {str(self.key_metric)!r}."
            )
        value = float(metrics[self.key_metric])
        if math.isnan(value) and self.best is None:
            if not self.has_written and self.writes:
                warnings.warn(
                    "No validation case has any of the classes, so there is no score and each model replaces the one "
                    "before. List cases that have them under `validation` in dataset.json to keep the best.",
                    stacklevel=2,
                )
            self._keep(engine)
        elif self.best is None or value > self.best:
            self.best, self.waited = value, 0
            self._keep(engine)
        else:
            self.waited += 1

    def _keep(self, engine: SupervisedEvaluator) -> None:
        self.epoch = engine.state.epoch
        if self.writes:
            self.write(engine.network)

    def write(self, network: nn.Module) -> None:
        """Writes the weights of a network and the names of the classes."""
        if not self.has_written:
            _set_aside(self.path)
        self.has_written = True
        write_model(network, self.path, self.class_names)

    def state_dict(self) -> dict[str, Any]:
        """Best value, epoch of the model, the evaluations since the best, and whether there is a model."""
        return {name: getattr(self, name) for name in ("best", "epoch", "waited", "has_written")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self.best, self.epoch, self.waited = state["best"], state["epoch"], state["waited"]
        self.has_written = state.get("has_written", state["best"] is not None)


class LastModelHandler:
    """
    Writes the trainer's EMA teacher as the model when the training ends and no validation has chosen a better one.

    Without validation cases there would be no model otherwise.

    Args:
        best_model: the handler that writes the best model.
    """

    def __init__(self, best_model: BestModelHandler) -> None:
        self.best_model = best_model

    def attach(self, engine: Engine) -> None:
        """Attaches to the end of the training."""
        engine.add_event_handler(Events.COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Writes, if no model has been chosen."""
        if self.best_model.best is None:
            warnings.warn(
                f"No validation has chosen a model: {self.best_model.path} is the one of the last epoch. "
                "List cases under `validation` in dataset.json to keep the best.",
                stacklevel=2,
            )
            self.best_model.write(engine.ema_teacher.module)


class RunStateSaver:
    """
    Writes what a run needs to go on, at its start and after every epoch: one file of plain tensors and numbers.

    It is replaced in one move, so there is a whole one at every moment. That at the start shows a folder that cannot be
    written to before there is anything to lose, and a run that is stopped in its first epoch begins that one anew. The
    state of an earlier run, which this one does not go on with, is renamed to ``*.previous.*``.

    What the trainer has ``to_save`` (network, optimizer, EMA teacher, projection heads, PIC with its donors,
    thresholds, gradient scaler) and its epoch; what else has a state is given. The frozen teacher is not saved; its
    fingerprint is.

    Args:
        path: file to write.
        objects: other objects with ``state_dict``, by name; ``None`` entries are skipped. A schedule of learning rates
            follows from the step, and has no place among them.
    """

    def __init__(self, path: str | Path, objects: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.objects = dict(objects or {})

    def attach(self, engine: Engine) -> None:
        """Attaches to the start of the run and the end of each epoch; attach it last."""
        engine.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """
        Writes the file.

        Raises:
            OSError: When it cannot be written; what was there before is unchanged.
        """
        if engine.state.iteration == 0 and getattr(engine.state, "resumed_from", None) != self.path:
            _set_aside(self.path)
        state = {name: part.state_dict() for name, part in _parts(engine, self.objects).items()}
        state["trainer"] = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        state["teacher"] = _fingerprint(engine)
        write_tensor_file(state, self.path)


class RunStateLoader:
    """
    Restores what :class:`RunStateSaver` wrote, before the first step.

    Args:
        path: file to read.
        objects: as they were given to the saver.
        lr_scheduler: schedule of learning rates by steps, which is brought to the step at which the run goes on. So a
            run that is made longer, or is given another learning rate, follows its new schedule from there.

    Raises:
        FileNotFoundError: When there is no such file.
    """

    def __init__(
        self,
        path: str | Path,
        objects: Mapping[str, Any] | None = None,
        lr_scheduler: LRScheduler | None = None,
    ) -> None:
        self.path = Path(path)
        self.objects = dict(objects or {})
        self.lr_scheduler = lr_scheduler
        self._done = False
        if not self.path.is_file():
            raise FileNotFoundError(
                f"path must be the state of a run, got {self.path}, which does not exist. Train first."
            )

    def attach(self, engine: Engine) -> None:
        """Attaches to the first start of the engine; attach it first."""
        engine.add_event_handler(Events.STARTED, self._first_start)

    def _first_start(self, engine: Engine) -> None:
        # Later rounds of a federation start the engine again and must go on from where they are.
        if not self._done:
            self(engine)
            self._done = True

    def __call__(self, engine: Engine) -> None:
        """
        Reads the file.

        Raises:
            ValueError: When the file is damaged or lacks a part, or the run had another teacher or other settings.
        """
        # On the CPU, whatever the device: a part moves what it needs, and step counts stay there.
        state = read_tensor_file(self.path, "path", "the state of a run")
        if state.get("teacher") != _fingerprint(engine):
            raise ValueError(
                f"The run in {self.path} had the teacher {state.get('teacher')}, and now it is {_fingerprint(engine)}. "
                "Pass the same teacher_weights."
            )
        parts = _parts(engine, self.objects)
        if "scaler" not in state:
            # The run was on a device that needs none; it finds its scale within a few steps.
            parts.pop("scaler", None)
        needed = ["trainer", *parts]
        if missing := [name for name in needed if name not in state]:
            raise ValueError(
                f"{self.path} must have the state of {', '.join(needed)}, got none of {', '.join(missing)}."
            )
        for name, part in parts.items():
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise ValueError(
                    f"{self.path} must be of a run with the same settings, got another {name}: {_first_line(error)} "
                    "Pass what the run was started with, which stands in its logs."
                ) from error
        engine.state.epoch = int(state["trainer"]["epoch"])
        # From the epochs, so that the next one is whole even if its length has been changed.
        length = engine.state.epoch_length
        engine.state.iteration = engine.state.epoch * length if length else state["trainer"]["iteration"]
        engine.state.resumed_from = self.path  # type: ignore[attr-defined]  # Ignite's State takes any attribute
        if self.lr_scheduler is not None:
            fast_forward_scheduler(self.lr_scheduler, engine.state.iteration)
        if engine.state.max_epochs is not None and engine.state.epoch >= engine.state.max_epochs:
            warnings.warn(
                f"The run in {self.path} has all of its {engine.state.max_epochs} epochs: nothing is left to train.",
                stacklevel=2,
            )


def _parts(engine: Any, objects: Mapping[str, Any]) -> dict[str, Any]:
    return {**engine.to_save, **{name: part for name, part in objects.items() if part is not None}}


def _first_line(error: Exception) -> str:
    # torch lists every tensor that does not fit, of which one is enough.
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0] if lines else "nothing fits").rstrip(
        "."
    ) + "."


def _fingerprint(engine: Engine) -> str | None:
    distiller = getattr(engine, "distiller", None)
    return None if distiller is None else distiller.fingerprint


def _set_aside(path: Path) -> None:
    """Keeps what an earlier run wrote: whoever forgot to resume it should not have lost it."""
    if path.is_file():
        kept = path.with_name(f"{path.stem}.previous{path.suffix}")
        path.replace(kept)
        logging.getLogger(__name__).warning("%s was there from an earlier run and is now %s.", path, kept.name)
