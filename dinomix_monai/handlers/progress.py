"""The progress of a training: one live line on the terminal, and a file with the means of each epoch."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from monai.engines import Workflow
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from dinomix_monai.core.epoch_table import EpochTable
from dinomix_monai.core.keys import LossKeys, MetricKeys, StepKeys

__all__ = ["HistoryHandler", "ProgressLineHandler"]

_LOSS_TERMS = (Keys.LOSS, *LossKeys)


class _EpochMeans:
    """Means over the steps of an epoch, of each term over the steps in which it was a finite number."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}

    def add(self, terms: dict[str, Any]) -> None:
        for term, value in terms.items():
            # Summed as tensors: reading a number in each step would wait for a GPU.
            number = torch.as_tensor(value).detach().float()
            is_finite = number.isfinite()
            self._sums[term] = self._sums.get(term, 0) + torch.where(is_finite, number, 0)
            self._counts[term] = self._counts.get(term, 0) + is_finite

    def values(self) -> dict[str, float]:
        return {term: float(total / self._counts[term]) for term, total in self._sums.items()}


class ProgressLineHandler:
    """
    A progress bar over the whole run with epoch, losses by name, the latest key metric and the time left.

    On a terminal the bar is one live line. Where stderr is no terminal, as in a log file, the handler writes a line for
    each epoch instead.

    Args:
        validator: evaluator whose key metric is shown; ``None`` for no metric.
        interval: number of steps from one refreshment of the losses to the next, since reading them waits for a GPU.
    """

    def __init__(self, validator: Engine | None = None, interval: int = 5) -> None:
        self.validator = validator
        self.interval = interval
        self._bar: tqdm | None = None
        self._loss_texts: dict[str, str] = {}
        self._metric_text: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to start, end and steps of the run."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._show_losses)
        # The line of an epoch is not written at its end, when its validation may still be to come.
        engine.add_event_handler(Events.EPOCH_STARTED | Events.COMPLETED, self._write_epoch_line)
        engine.add_event_handler(Events.COMPLETED | Events.INTERRUPT, self._close)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._show_metric)

    def _start(self, engine: Workflow) -> None:
        length = engine.state.epoch_length
        self._is_on_terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=engine.state.max_epochs * length if length else None,
            initial=engine.state.iteration,
            unit="step",
            dynamic_ncols=True,
            # The bar is on this line, also where a training that failed has left its bar open.
            position=0,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}",
            # The time left follows from the mean of all steps, which includes the time for validation.
            smoothing=0,
            # Without a terminal the bar is not shown and only keeps the time.
            delay=0 if self._is_on_terminal else math.inf,
        )

    def __call__(self, engine: Workflow) -> None:
        """Moves the bar by one step."""
        if self._bar is None:
            return
        if engine.state.iteration % self.interval == 0:
            self._show_losses(engine)
        self._bar.update()

    def _show_losses(self, engine: Workflow) -> None:
        if self._bar is not None:
            self._loss_texts.update(
                {term: f"{float(value):.3f}" for term, value in _latest_values(engine, _LOSS_TERMS).items()}
            )
            self._bar.set_description_str(f"epoch {engine.state.epoch}/{engine.state.max_epochs}", refresh=False)
            self._bar.set_postfix({**self._loss_texts, **self._metric_text}, refresh=False)

    def _show_metric(self, validator: Workflow) -> None:
        if MetricKeys.KEY in validator.state.metrics:
            value = validator.state.metrics[MetricKeys.KEY]
            self._metric_text = {str(MetricKeys.KEY): "none" if math.isnan(value) else f"{value:.3f}"}
            if self._bar is not None:
                self._bar.set_postfix({**self._loss_texts, **self._metric_text}, refresh=self._is_on_terminal)

    def _write_epoch_line(self) -> None:
        if self._bar is not None and not self._is_on_terminal and self._bar.n > self._bar.initial:
            print(self._bar, file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class HistoryHandler:
    """
    Takes the mean of what the steps of an epoch have brought, for ``history.csv`` and for TensorBoard.

    ``history.csv`` has a row for each epoch with the mean of each loss, the share of the unlabeled voxels whose
    pseudo-label counts and, where the epoch ended with a validation, the key metric. The means and those of the other
    :class:`~dinomix_monai.core.keys.StepKeys` stand in ``engine.state.metrics``, which MONAI's
    ``TensorBoardStatsHandler`` writes, with the share of each class as ``confident_share/CLASS``. They are read once in
    each epoch, because reading them waits for a GPU.

    Args:
        path: file to write. When a run starts, the file keeps the rows of the epochs that the run has behind it, so a
            run that starts at its first epoch begins the file anew.
        validator: evaluator whose key metric is written; ``None`` for no metric.
        pseudo_labeler: see :class:`dinomix_monai.engines.PseudoLabeler`; ``None`` for no share of each class.
        class_names: names by label value, background first.
    """

    columns: Sequence[str] = (
        *("epoch", *map(str, _LOSS_TERMS)),
        *(str(StepKeys.CONFIDENT_SHARE), str(MetricKeys.KEY)),
    )

    def __init__(
        self,
        path: str | Path,
        validator: Workflow | None = None,
        pseudo_labeler: Any = None,
        class_names: Sequence[str] = (),
    ) -> None:
        self.table = EpochTable(path, self.columns)
        self.validator = validator
        self.pseudo_labeler = pseudo_labeler
        self.class_names = list(class_names)
        self._means = _EpochMeans()
        self._shown: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to the steps and the end of each epoch; attach it after the validation."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: Workflow) -> None:
        self._means.clear()
        self.table.start(engine.state.epoch)

    def _step(self, engine: Workflow) -> None:
        self._means.add(_latest_values(engine, (*_LOSS_TERMS, *StepKeys)))

    def __call__(self, engine: Workflow) -> None:
        """Writes the row of the epoch."""
        means = self._means.values()
        row: dict[str, Any] = {"epoch": engine.state.epoch}
        row.update({term: f"{value:.5f}" for term, value in means.items() if term in self.columns})
        if self.validator is not None and self.validator.state.epoch == engine.state.epoch:
            value = self.validator.state.metrics.get(MetricKeys.KEY, math.nan)
            if not math.isnan(value):
                row[str(MetricKeys.KEY)] = f"{value:.5f}"
        self.table.add([row])
        self._show(engine, means)
        self._means.clear()

    def _show(self, engine: Workflow, means: dict[str, float]) -> None:
        shown = dict(means)
        if self.pseudo_labeler is not None:
            shares = self.pseudo_labeler.take_confident_shares().tolist()
            shown |= {f"{StepKeys.CONFIDENT_SHARE}/{name}": share for name, share in zip(self.class_names, shares)}
        # What this epoch has not brought is no value of it.
        for name in self._shown:
            engine.state.metrics.pop(name, None)
        self._shown = {name: value for name, value in shown.items() if math.isfinite(value)}
        engine.state.metrics.update(self._shown)


def _latest_values(engine: Workflow, names: Sequence[str]) -> dict[str, Any]:
    """The values of these names that the output of the last step has; after decollation the output is a list."""
    output = engine.state.output
    output = output[0] if isinstance(output, list) else output
    return {str(name): output[name] for name in names if name in output}
