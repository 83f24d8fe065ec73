"""Scores of every case and class by one rule."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from dinomix_monai.core.text import number, text_table
from dinomix_monai.metrics.nan_means import nan_mean, with_mean
from dinomix_monai.metrics.score_rules import Outcome, ScoreRule

__all__ = ["CaseScores"]


@dataclass
class CaseScores:
    """
    Outcome and scores of each foreground class in each case.

    Args:
        class_names: names by label value, background first.
        rule: how a case is scored.
        cases: names of the cases so far.
        outcomes: for each case, what became of each class.
        scores: for each case, an array of shape (metrics of the rule, classes); NaN is a value left out.
        grid: {``"file"``, ``"scan"``} where label and prediction were compared: on the grid of the data set's files, or
            on that of the scans that these were made of.
        possible: for each value of a label, which classes it stands for, see
            :meth:`dinomix_monai.volumes.PartialLabels.table`; ``None`` where labels are complete.
    """

    class_names: Sequence[str]
    rule: ScoreRule
    cases: list[str] = field(default_factory=list)
    outcomes: list[list[Outcome]] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    grid: str = "file"
    possible: np.ndarray | None = None

    def add(self, case: str, prediction: torch.Tensor, label: torch.Tensor, spacing_mm: Sequence[float]) -> None:
        """
        Scores a case.

        Args:
            case: its name.
            prediction: label map, shape (1, H, W[, D]).
            label: ground truth, same shape.
            spacing_mm: voxel size along each axis.

        Raises:
            ValueError: When the shapes differ, or a value is none of a class.
        """
        if prediction.shape != label.shape:
            raise ValueError(
                f"prediction must have the shape of label {tuple(label.shape)}, got {tuple(prediction.shape)} ({case})."
            )
        num_classes = len(self.class_names)
        maps = {"prediction": prediction.cpu(), "label": label.cpu()}
        most = {"prediction": num_classes, "label": num_classes if self.possible is None else len(self.possible)}
        for name, labels in maps.items():
            if not 0 <= labels.min() <= labels.max() < most[name] or (labels != labels.round()).any():
                values = f"{labels.min():g} to {labels.max():g}"
                raise ValueError(f"{name} must have whole values from 0 to {most[name] - 1}, got {values} ({case}).")
        outcomes, scores = self.rule(**maps, spacing_mm=spacing_mm, num_classes=num_classes, possible=self.possible)
        self.cases.append(case)
        self.outcomes.append(outcomes)
        self.scores.append(scores)

    def mean(self) -> np.ndarray:
        """Mean over the cases, shape (metrics, classes); NaN where no case counts."""
        return nan_mean(np.stack(self.scores), axis=0)

    def count(self, *outcomes: Outcome) -> np.ndarray:
        """Number of cases in which each class has one of these outcomes, shape (classes,)."""
        return np.isin(np.array(self.outcomes), outcomes).sum(0)

    def heading(self) -> str:
        """The rule in a line, and where the grids are others than those of the files."""
        grid = " (the grids are those of the original scans)" if self.grid == "scan" else ""
        return f"{self.rule.name} rule: {self.rule.summary}{grid}"

    def rows(self) -> list[tuple[str, ...]]:
        """Headings, the means of each class, and the mean over the classes, as text."""
        columns = [
            ["class", *self.class_names[1:], "mean"],
            *(
                [metric.heading, *(number(value, metric.decimals) for value in values)]
                for metric, values in zip(self.rule.metrics, with_mean(self.mean()))
            ),
            ["missed in", *self._shares(Outcome.MISSED, Outcome.FOUND), ""],
            ["invented in", *self._shares(Outcome.INVENTED, Outcome.ABSENT), ""],
        ]
        if (unknown := self.count(Outcome.NOT_ANNOTATED)).any():
            columns.append(["not annotated in", *(f"{count} of {len(self.cases)}" for count in unknown), ""])
        return list(zip(*columns))

    def table(self) -> str:
        """Heading and rows as text."""
        return "\n".join([self.heading(), *text_table(self.rows())])

    def failures(self) -> list[str]:
        """A sentence for each class that was missed or invented, with the cases, missed ones first."""
        sentences = []
        for outcome, shares in (
            (Outcome.MISSED, self._shares(Outcome.MISSED, Outcome.FOUND)),
            (Outcome.INVENTED, self._shares(Outcome.INVENTED, Outcome.ABSENT)),
        ):
            for number_of, (name, share) in enumerate(zip(self.class_names[1:], shares)):
                cases = [case for case, row in zip(self.cases, self.outcomes) if row[number_of] is outcome]
                if cases:
                    sentences.append(f"{name.capitalize()} was {outcome} in {share} cases: {', '.join(cases)}.")
        return sentences

    def _shares(self, outcome: Outcome, otherwise: Outcome) -> list[str]:
        """For each class, in how many of the cases in which an outcome was possible it came about."""
        counts = zip(self.count(outcome), self.count(outcome, otherwise))
        return [f"{count} of {cases}" if cases else "" for count, cases in counts]
