from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
from scipy import stats

from dinomix_monai.metrics import holm, paired_interval, signed_rank_p
from dinomix_monai.metrics.paired_statistics import over_cases


def runs(generator, seeds, cases, case_sd=1.0, seed_sd=0.0, noise_sd=0.5, classes=1, difference=0.0):
    """Two runs (seeds, cases, classes); cases differ in how hard they are and in what A gains over B."""
    hardness = generator.normal(0, 5, (cases, classes))
    gain = generator.normal(difference, case_sd, (cases, classes))
    shape = (seeds, cases, classes)
    a, b = (generator.normal(0, seed_sd, (seeds, 1, 1)) + generator.normal(0, noise_sd, shape) for _ in "ab")
    return hardness + gain + a, hardness + b


def coverage(trials=150, **settings):
    """Share of intervals that cover the true difference 0."""
    generator = np.random.default_rng(0)
    ends = [paired_interval(*runs(generator, **settings), resamples=999) for _ in range(trials)]
    return np.mean([low[0] <= 0 <= high[0] for low, high in ends])


# Of 150 intervals that cover in 95 of 100, at least 0.90 do but once in a hundred times.
@pytest.mark.parametrize(("seeds", "cases"), [(1, 6), (1, 20), (3, 8)])
def test_intervals_cover_the_true_difference_as_often_as_they_say(seeds, cases):
    assert coverage(seeds=seeds, cases=cases) >= 0.9


def test_intervals_cover_where_trainings_differ_more_than_cases():
    assert coverage(seeds=3, cases=20, seed_sd=1.0) >= 0.9


def test_averaging_seeds_first_would_not_cover():
    generator = np.random.default_rng(0)
    pairs = [runs(generator, seeds=3, cases=20, seed_sd=1.0) for _ in range(150)]
    averaged = [paired_interval(a.mean(0)[None], b.mean(0)[None], resamples=999) for a, b in pairs]
    assert np.mean([low[0] <= 0 <= high[0] for low, high in averaged]) < 0.7


def test_the_interval_of_many_cases_is_that_of_the_t_test():
    a, b = runs(np.random.default_rng(0), seeds=1, cases=200, difference=0.5)
    expected = stats.ttest_rel(a[0, :, 0], b[0, :, 0]).confidence_interval(0.95)
    low, high = paired_interval(a, b)
    assert [low[0], high[0]] == pytest.approx([expected.low, expected.high], abs=0.01)


def test_the_variance_of_few_draws_is_not_too_small():
    # Half of the length at the level of one standard deviation; plain bootstrap would give 0.91 of it for 6 cases.
    a, b = runs(np.random.default_rng(0), seeds=1, cases=6)
    error = stats.sem(a[0, :, 0] - b[0, :, 0])
    level = 1 - 2 * stats.t.sf(1, 5)
    low, high = paired_interval(a, b, confidence=level, resamples=50_000)
    assert (high[0] - low[0]) / 2 == pytest.approx(error, rel=0.04)


def test_few_seeds_have_the_degrees_of_freedom_of_welch():
    # Three seeds a run, of equal variance and nothing else: 4 degrees, so the tail is that of 2.78 deviations, 0.0027.
    # Of 81 equally likely draws, two seeds of either run, one has the worst seed of A twice and the best of B twice.
    run = np.array([0.0, 1.0, 2.0])[:, None, None].repeat(50, axis=1)
    low, high = paired_interval(run, run)
    assert (low[0], high[0]) == (-2, 2)


def test_how_hard_a_case_is_cancels():
    hardness = np.random.default_rng(0).normal(0, 100, (1, 10, 1))
    low, high = paired_interval(hardness + 1, hardness)
    assert [low[0], high[0]] == pytest.approx([1, 1])


def test_more_confidence_gives_a_longer_interval():
    pair = runs(np.random.default_rng(0), seeds=2, cases=10)
    (low, high), (lower, higher) = (paired_interval(*pair, confidence=level) for level in (0.8, 0.95))
    assert lower[0] < low[0] < high[0] < higher[0]


def test_the_last_interval_is_of_the_mean_over_the_classes():
    a, b = runs(np.random.default_rng(0), seeds=1, cases=40, classes=3)
    merged = paired_interval(a.mean(2, keepdims=True), b.mean(2, keepdims=True))
    assert np.ravel(paired_interval(a, b))[[3, 7]] == pytest.approx(np.ravel(merged)[[0, 2]], abs=1e-9)


def test_a_class_that_cases_lack_has_the_interval_of_those_that_have_it():
    a, b = runs(np.random.default_rng(0), seeds=1, cases=60, classes=2)
    a[:, 40:, 1] = b[:, 40:, 1] = math.nan
    few = paired_interval(a[:, :40, 1:], b[:, :40, 1:])
    assert np.ravel(paired_interval(a, b))[[1, 4]] == pytest.approx(np.ravel(few)[[0, 2]], abs=0.03)


def test_one_case_has_no_interval_and_no_warning():
    a, b = runs(np.random.default_rng(0), seeds=2, cases=5, classes=3)
    a[:, 1:, 1] = b[:, 1:, 1] = a[:, :, 2] = b[:, :, 2] = math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = paired_interval(a, b)
    assert np.isnan(low).tolist() == np.isnan(high).tolist() == [False, True, True, False]


def test_the_same_seed_gives_the_same_interval():
    pair = runs(np.random.default_rng(0), seeds=2, cases=10)
    first, again, other = (paired_interval(*pair, seed=seed)[0].tolist() for seed in (1, 1, 2))
    assert first == again != other


def test_the_test_is_wilcoxons_by_hand():
    # Ranks of the negative differences: 1 of 1, 2, ..., 6. Of 64 signs, 2 give a sum of at most 1, on either side.
    assert signed_rank_p(np.array([-1.0, 2, 3, 4, 5, 6])) == pytest.approx(2 * 2 / 64)


def test_the_test_leaves_out_absent_classes_and_ties():
    assert signed_rank_p(np.array([math.nan, 1, 2, 3, 4, 5])) == pytest.approx(2 / 32)
    assert signed_rank_p(np.zeros(5)) == 1
    assert math.isnan(signed_rank_p(np.full(3, math.nan)))


def test_holm_by_hand():
    corrected = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert corrected.tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_does_not_count_what_was_not_tested_and_stops_at_1():
    corrected = holm(np.array([0.6, math.nan, 0.02]))
    np.testing.assert_allclose(corrected, [0.6, math.nan, 0.04])
    assert holm(np.array([0.7, 0.8])).tolist() == [1, 1]


def test_means_over_cases_have_the_mean_of_the_classes_behind_them():
    scores = np.array([[[1.0, 0.5, math.nan], [0.0, math.nan, math.nan]]])
    np.testing.assert_allclose(over_cases(scores), [[0.5, 0.5, math.nan, 0.5]])
