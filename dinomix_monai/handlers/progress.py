"""One live line of progress, and a history of the run."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from ignite.engine import Engine, Events
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from dinomix_monai.keys import LossKeys, MetricKeys

__all__ = ["HistoryHandler", "ProgressLineHandler"]

_TERMS = (Keys.LOSS, *LossKeys)


class _EpochMeans:
    """Means of the terms of the loss since the epoch began; a term that was not computed in a step is not averaged there."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, output: dict) -> None:
        for term in _TERMS:
            if term in output:
                self._sums[str(term)] = self._sums.get(str(term), 0.0) + float(output[term])
                self._counts[str(term)] = self._counts.get(str(term), 0) + 1

    def values(self) -> dict[str, float]:
        return {term: total / self._counts[term] for term, total in self._sums.items()}


class ProgressLineHandler:
    """
    A progress bar over the whole run with epoch, losses by name, the latest key metric and the time left.

    Args:
        validator: evaluator whose key metric is shown, or ``None``.
        interval: the losses are refreshed in every ``interval``-th step, since reading them waits for a GPU.
    """

    def __init__(self, validator: Engine | None = None, interval: int = 5) -> None:
        self.validator = validator
        self.interval = interval
        self._bar: tqdm | None = None
        self._shown: dict[str, str] = {}

    def attach(self, engine: Engine) -> None:
        """Attaches to start, end and steps of the run."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED | Events.INTERRUPT, self._stop)
        if self.validator is not None:
            self.validator.add_event_handler(Events.COMPLETED, self._show_metric)

    def _start(self, engine: Engine) -> None:
        steps = engine.state.max_epochs * engine.state.epoch_length
        self._bar = tqdm(
            total=steps, initial=engine.state.iteration, unit="step", dynamic_ncols=True,
            bar_format="{desc} {percentage:3.0f}%|{bar:20}| {elapsed}<{remaining}{postfix}",
        )  # fmt: skip

    def __call__(self, engine: Engine) -> None:
        """Moves the bar by one step."""
        if self._bar is None:
            return
        if engine.state.iteration % self.interval == 0:
            output = engine.state.output
            output = output[0] if isinstance(output, list) else output
            for term in _TERMS:
                if term in output:
                    self._shown[str(term)] = f"{float(output[term]):.3f}"
            self._bar.set_description_str(f"epoch {engine.state.epoch}/{engine.state.max_epochs}", refresh=False)
            self._bar.set_postfix(self._shown, refresh=False)
        self._bar.update()

    def _show_metric(self, validator: Engine) -> None:
        if MetricKeys.KEY in validator.state.metrics:
            self._shown[str(MetricKeys.KEY)] = f"{validator.state.metrics[MetricKeys.KEY]:.3f}"

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class HistoryHandler:
    """
    Writes ``history.csv``: a row for each epoch with the mean of each loss and, where it validated, the key metric.

    Args:
        path: file to write; it is begun anew when a run starts at its first epoch.
        validator: evaluator whose key metric is written, or ``None``.
    """

    columns: Sequence[str] = ("epoch", *(str(term) for term in _TERMS), str(MetricKeys.KEY))

    def __init__(self, path: str | Path, validator: Engine | None = None) -> None:
        self.path = Path(path)
        self.validator = validator
        self._means = _EpochMeans()

    def attach(self, engine: Engine) -> None:
        """Attaches to the steps and the end of each epoch; attach it after the validation."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def _start(self, engine: Engine) -> None:
        self._means.clear()
        if engine.state.epoch == 0 or not self.path.is_file():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("w", newline="") as file:
                csv.writer(file).writerow(self.columns)

    def _step(self, engine: Engine) -> None:
        output = engine.state.output
        self._means.add(output[0] if isinstance(output, list) else output)

    def __call__(self, engine: Engine) -> None:
        """Writes the row of the epoch."""
        row = {"epoch": engine.state.epoch, **{k: f"{v:.5f}" for k, v in self._means.values().items()}}
        validated = self.validator is not None and self.validator.state.epoch == engine.state.epoch
        if validated and MetricKeys.KEY in self.validator.state.metrics:
            row[str(MetricKeys.KEY)] = f"{self.validator.state.metrics[MetricKeys.KEY]:.5f}"
        with self.path.open("a", newline="") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)
        self._means.clear()
