"""Interval and test for the difference of two runs on the same cases."""

from __future__ import annotations

import warnings

import numpy as np
from scipy import stats

from dinomix_monai.metrics.nan_means import nan_mean, with_mean

__all__ = ["holm", "over_cases", "paired_interval", "signed_rank_p"]


def over_cases(scores: np.ndarray) -> np.ndarray:
    """
    Mean over the cases, and behind it the mean of those means over the classes.

    Args:
        scores: shape (seeds, cases, classes); NaN is left out.

    Returns:
        shape (seeds, classes + 1).
    """
    return with_mean(nan_mean(scores, axis=1))


def paired_interval(
    a: np.ndarray, b: np.ndarray, confidence: float = 0.95, resamples: int = 9999, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """
    Bootstrap interval of the difference of two runs' means, for each class and for the mean over the classes.

    Cases and, within each run, seeds are drawn anew, each on its own (Owen, "The pigeonhole bootstrap", 2007,
    https://doi.org/10.1214/07-AOAS122); a drawn case is drawn for both runs. Averaging the seeds first would leave out
    how trainings differ, which may be more than how cases do. Two steps keep the interval from being too short for few
    cases and seeds: of n, n - 1 are drawn, which makes the variance of their mean unbiased, and the percentiles are
    those of Student's t, with degrees of freedom after Welch and Satterthwaite, instead of the normal distribution.
    With one seed nothing is known of how trainings differ, and the interval covers the cases alone.

    Args:
        a: scores of a run, shape (seeds, cases, classes); NaN, in the same places for all, is a class the case lacks.
        b: scores of the other, with the same cases and classes.
        confidence: share of such intervals that cover the true difference.
        resamples: number of draws.
        seed: seed of the draws.

    Returns:
        lower and upper ends, each (classes + 1,); NaN for a class that fewer than two cases have.
    """
    generator = np.random.default_rng(seed)
    cases = _draws(generator, a.shape[1], resamples)
    with np.errstate(invalid="ignore"):
        present = cases @ ~np.isnan(a[0])
        drawn_a, drawn_b = (
            sum(weight[:, None] * (cases @ np.nan_to_num(run[i])) for i, weight in enumerate(seeds.T)) / present
            for run in (a, b)
            for seeds in [_draws(generator, len(run), resamples)]
        )
    differences = with_mean(drawn_a - drawn_b)
    tails = stats.norm.cdf(stats.t.ppf((1 - confidence) / 2, _degrees_of_freedom(a, b)))
    ends = np.full((2, len(tails)), np.nan)
    for column in np.flatnonzero(~np.isnan(tails)):
        ends[:, column] = np.nanquantile(differences[:, column], [tails[column], 1 - tails[column]])
    return ends[0], ends[1]


def signed_rank_p(differences: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test; NaN values do not count, nor do differences of 0."""
    differences = differences[~np.isnan(differences)]
    if not len(differences):
        return np.nan
    # Left out here: SciPy before 1.13 gives up its exact distribution where there is a 0.
    differences = differences[differences != 0]
    return float(stats.wilcoxon(differences).pvalue) if len(differences) else 1.0


def holm(p: np.ndarray) -> np.ndarray:
    """
    P values corrected for their number after Holm; NaN values do not count.

    Example:
        >>> holm(np.array([0.01, 0.04, 0.03, np.nan])).tolist()
        [0.03, 0.06, 0.06, nan]
    """
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.count_nonzero(~np.isnan(p))]  # NaN comes last
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected


def _draws(generator: np.random.Generator, count: int, resamples: int) -> np.ndarray:
    """Weights that sum to 1 for each draw, shape (resamples, count); a single one is always drawn."""
    size = max(count - 1, 1)
    return generator.multinomial(size, np.full(count, 1 / count), size=resamples) / size


def _degrees_of_freedom(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """After Welch and Satterthwaite, from the variance over cases and over the seeds of each run."""
    differences = with_mean(a.mean(0) - b.mean(0))
    cases = np.count_nonzero(~np.isnan(differences), axis=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # the variance of one case, which is NaN
        parts = [(np.nanvar(differences, axis=0, ddof=1) / cases, cases - 1)]
    parts += [(over_cases(run).var(axis=0, ddof=1) / len(run), len(run) - 1) for run in (a, b) if len(run) > 1]
    total = sum(variance for variance, _ in parts)
    with np.errstate(invalid="ignore", divide="ignore"):
        freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts)
    # Without any variance there is nothing to weigh, and with one case nothing to tell: t has no 0 degrees.
    return np.where(total > 0, freedom, cases - 1)
