"""Comparison of two runs, each of one or several seeds, on the same cases."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dinomix_monai.core.text import number, text_table
from dinomix_monai.metrics.case_scores import CaseScores
from dinomix_monai.metrics.paired_statistics import holm, over_cases, paired_interval, signed_rank_p
from dinomix_monai.metrics.score_rules import Metric, Outcome

__all__ = ["ComparedClass", "RunComparison", "compare_runs"]


@dataclass(frozen=True)
class ComparedClass:
    """
    A class, or the mean over the classes, in both runs.

    ``mean_a`` and ``spread_a`` are mean and standard deviation over the seeds of the mean over cases, the spread NaN
    for one seed. ``low`` and ``high`` bound ``difference``, A - B. ``p_holm`` is ``p`` corrected for the number of
    classes; for the mean over them both are the same.
    """

    name: str
    cases: int
    mean_a: float
    spread_a: float
    mean_b: float
    spread_b: float
    difference: float
    low: float
    high: float
    p: float
    p_holm: float

    def higher(self, alpha: float) -> str | None:
        """The run that is higher, "A" or "B", if both say so: the interval without 0 in it, and the corrected test."""
        if self.low <= 0 <= self.high or not self.p_holm < alpha:
            return None
        return "A" if self.difference > 0 else "B"


@dataclass(frozen=True)
class RunComparison:
    """
    What ``compare_runs`` has found.

    Args:
        rule: name of the rule of scoring.
        metric: what was compared.
        runs_a: names of the seeds' runs.
        runs_b: likewise.
        cases: number of cases.
        confidence: level of the intervals.
        classes: one row for each class.
        mean: the row of the mean over the classes.
    """

    rule: str
    metric: Metric
    runs_a: Sequence[str]
    runs_b: Sequence[str]
    cases: int
    confidence: float
    classes: Sequence[ComparedClass]
    mean: ComparedClass

    def table(self) -> str:
        """What is compared, a row for each class, and the conclusions."""
        lines = [f"{self.metric.heading} by the {self.rule} rule, {self.cases} cases"]
        lines += [f"{side}: {', '.join(runs)}" for side, runs in (("A", self.runs_a), ("B", self.runs_b))]
        headings = ("class", "cases", "A", "B", "A - B", f"{self.confidence:.0%} interval", "p", "p (Holm)")
        lines += text_table([headings, *(self._cells(row) for row in (*self.classes, self.mean))])
        return "\n".join([*lines, "", *self.conclusions()])

    def conclusions(self) -> list[str]:
        """What the numbers support, in words."""
        alpha = 1 - self.confidence
        higher = {side: [row.name for row in self.classes if row.higher(alpha) == side] for side in ("A", "B", None)}
        parts = [f"{side} is higher in {', '.join(higher[side])}" for side in ("A", "B") if higher[side]]
        if higher[None]:
            parts.append(f"no difference shown in {'the others' if parts else 'any'}")
        mean = self.mean.higher(alpha)
        sentences = [
            f"Mean over the classes: {f'{mean} is higher' if mean else 'no difference shown'}.",
            f"Classes: {'; '.join(parts)}.",
        ]
        tested = [row.cases for row in self.classes if not math.isnan(row.p)]
        least = len(tested) * 2 / 2 ** max(tested, default=0)
        if tested and least >= alpha:
            sentences.append(
                f"No class can differ with so few cases: of {max(tested)} cases and {len(tested)} classes, p (Holm) is "
                f"at least {min(least, 1):.3f}."
            )
        if single := [side for side, runs in (("A", self.runs_a), ("B", self.runs_b)) if len(runs) == 1]:
            sentences.append(
                f"One seed of {' and '.join(single)}: this is about these trained models; how far trainings differ by "
                "chance is not covered."
            )
        return sentences

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values for JSON; None is a value that there is not."""
        alpha = 1 - self.confidence
        rows = [
            {name: None if value != value else value for name, value in asdict(row).items()}
            | {"higher": row.higher(alpha)}
            for row in (*self.classes, self.mean)
        ]
        return {
            "rule": self.rule,
            "metric": str(self.metric.key),
            "runs_a": list(self.runs_a),
            "runs_b": list(self.runs_b),
            "cases": self.cases,
            "confidence": self.confidence,
            "classes": rows[:-1],
            "mean": rows[-1],
            "conclusions": self.conclusions(),
        }

    def _cells(self, row: ComparedClass) -> tuple[str, ...]:
        decimals = self.metric.decimals
        runs = (
            number(mean, decimals) + ("" if math.isnan(spread) else f" ± {spread:.{decimals}f}")
            for mean, spread in ((row.mean_a, row.spread_a), (row.mean_b, row.spread_b))
        )
        interval = "-" if math.isnan(row.low) else f"{row.low:+.{decimals}f} to {row.high:+.{decimals}f}"
        p_values = (number(p, 3) for p in (row.p, row.p_holm))
        return (row.name, str(row.cases), *runs, number(row.difference, decimals, "+"), interval, *p_values)


def compare_runs(
    a: Mapping[str, CaseScores],
    b: Mapping[str, CaseScores],
    metric: str | None = None,
    confidence: float = 0.95,
    resamples: int = 9999,
) -> RunComparison:
    """
    Compares two runs, case by case.

    The unit is the case: the test is Wilcoxon's signed-rank test of the cases' differences, seeds averaged, corrected
    over the classes after Holm. The interval is that of ``paired_interval``, for each class on its own. For the mean
    over the classes, a case's difference in the test is the mean over the classes that it has.

    Args:
        a: scores of each seed of run A, by the name to call it.
        b: likewise of run B.
        metric: what to compare, by its column in ``metrics.csv``; the rule's Dice if not given.
        confidence: level of the intervals; 1 minus it is that of the tests.
        resamples: number of draws of the bootstrap.

    Raises:
        ValueError: When rules, cases, classes or ground truth differ between the runs, there are fewer than two cases,
            or the rule has no such metric.
    """
    (first_name, first), *others = (*a.items(), *b.items())
    for name, other in others:
        _check_comparable(first_name, first, name, other)
    if len(first.cases) < 2:
        raise ValueError(f"runs must have at least two cases to compare, got {len(first.cases)}.")
    metrics = {str(one.key): one for one in first.rule.metrics}
    chosen = metric or next(iter(metrics))
    if chosen not in metrics:
        raise ValueError(f"metric must be one of the {first.rule.name} rule ({', '.join(metrics)}), got {metric}.")
    scores_a, scores_b = (
        np.stack([_aligned(one, first, list(metrics).index(chosen)) for one in run.values()]) for run in (a, b)
    )
    return RunComparison(
        first.rule.name,
        metrics[chosen],
        list(a),
        list(b),
        len(first.cases),
        confidence,
        *_rows(first.class_names[1:], scores_a, scores_b, confidence, resamples),
    )


def _rows(
    names: Sequence[str], a: np.ndarray, b: np.ndarray, confidence: float, resamples: int
) -> tuple[list[ComparedClass], ComparedClass]:
    low, high = paired_interval(a, b, confidence, resamples)
    differences = a.mean(0) - b.mean(0)
    p = np.array([signed_rank_p(column) for column in differences.T])
    some = ~np.isnan(differences).all(1)
    p_mean = signed_rank_p(np.nanmean(differences[some], axis=1)) if some.any() else np.nan
    means = [over_cases(run) for run in (a, b)]
    columns = [
        *(over_seeds(mean) for mean in means for over_seeds in (_mean, _spread)),
        means[0].mean(0) - means[1].mean(0),
        *(low, high, [*p, p_mean], [*holm(p), p_mean]),
    ]
    counts = [*np.count_nonzero(~np.isnan(differences), axis=0), np.count_nonzero(some)]
    rows = [
        ComparedClass(name, int(count), *map(float, values))
        for name, count, *values in zip([*names, "mean"], counts, *columns)
    ]
    return rows[:-1], rows[-1]


def _mean(means: np.ndarray) -> np.ndarray:
    return means.mean(0)


def _spread(means: np.ndarray) -> np.ndarray:
    return means.std(0, ddof=1) if len(means) > 1 else np.full(means.shape[1], np.nan)


def _aligned(scores: CaseScores, like: CaseScores, metric: int) -> np.ndarray:
    """Scores by one metric, shape (cases, classes), in the order of another run."""
    cases = [scores.cases.index(case) for case in like.cases]
    classes = [list(scores.class_names[1:]).index(name) for name in like.class_names[1:]]
    return np.stack(scores.scores)[:, metric][np.ix_(cases, classes)]


def _check_comparable(name_a: str, a: CaseScores, name_b: str, b: CaseScores) -> None:
    for what, all_a, all_b in (
        ("scored by the same rule", [a.rule.name], [b.rule.name]),
        ("scored on the same grid", [f"grid {a.grid}"], [f"grid {b.grid}"]),
        ("scored on the same cases", a.cases, b.cases),
        ("of the same classes", a.class_names[1:], b.class_names[1:]),
    ):
        alone = (name_a, [x for x in all_a if x not in all_b]), (name_b, [x for x in all_b if x not in all_a])
        if any(names for _, names in alone):
            found = " and ".join(f"{', '.join(names)} in {name} alone" for name, names in alone if names)
            raise ValueError(f"runs must be {what}, got {found}.")
    in_a, in_b = _in_label(a), _in_label(b)
    for case, name in sorted(in_a ^ in_b):
        has = name_a if (case, name) in in_a else name_b
        raise ValueError(f"runs must be scored on the same labels, got {name} of {case} in that of {has} alone.")


def _in_label(scores: CaseScores) -> set[tuple[str, str]]:
    return {
        (case, name)
        for case, outcomes in zip(scores.cases, scores.outcomes)
        for name, outcome in zip(scores.class_names[1:], outcomes)
        if outcome in (Outcome.FOUND, Outcome.MISSED)
    }
