from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy import stats

from dinomix_monai.metrics import CaseScores, Outcome, compare_runs, score_rule

NAMES = ("background", "liver", "gallbladder")


def run(dice, names=NAMES, rule="sound", cases=None):
    """Scores whose Dice, shape (cases, classes), is given; NaN is a class that the label lacks."""
    dice = np.asarray(dice, dtype=float)
    metrics = len(score_rule(rule).metrics)
    outcomes = [[Outcome.ABSENT if np.isnan(value) else Outcome.FOUND for value in row] for row in dice]
    scores = [np.stack([row * (i + 1) for i in range(metrics)]) for row in dice]
    cases = cases or [f"case_{i}" for i in range(len(dice))]
    return CaseScores(names, score_rule(rule), list(cases), outcomes, scores)


@pytest.fixture
def dice():
    """Dice of two classes in 12 cases."""
    return np.random.default_rng(0).uniform(0.4, 0.8, (12, 2))


def better(dice, gain=(0.1, 0.0), seed=1):
    """The same with a gain for each class, which varies a little."""
    return dice + gain + np.random.default_rng(seed).normal(0, 0.02, dice.shape)


def test_means_and_spread_are_over_the_seeds(dice):
    a = {"a0": run(dice), "a1": run(dice + 0.1), "a2": run(dice + 0.2)}
    liver = compare_runs(a, {"b": run(dice)}).classes[0]
    assert liver.name == "liver"
    assert liver.cases == 12
    assert liver.mean_a == pytest.approx(dice[:, 0].mean() + 0.1)
    assert liver.spread_a == pytest.approx(0.1)  # of 0, 0.1 and 0.2
    assert math.isnan(liver.spread_b)
    assert liver.difference == pytest.approx(0.1)


def test_the_test_is_of_the_cases_with_their_seeds_averaged(dice):
    other = better(dice, (0.01, 0.01))
    comparison = compare_runs({"0": run(other), "1": run(dice)}, {"0": run(dice)})
    expected = [stats.wilcoxon((other - dice)[:, i] / 2).pvalue for i in range(2)]
    assert [row.p for row in comparison.classes] == pytest.approx(expected)
    assert min(row.p_holm for row in comparison.classes) == pytest.approx(2 * min(expected))
    assert comparison.mean.p == comparison.mean.p_holm
    assert comparison.mean.p == pytest.approx(stats.wilcoxon((other - dice).mean(1)).pvalue)


def test_a_class_that_is_higher_is_named_and_one_that_is_not_is_not(dice):
    comparison = compare_runs({"a": run(better(dice))}, {"b": run(dice)})
    assert [row.higher(0.05) for row in comparison.classes] == ["A", None]
    assert comparison.conclusions() == [
        "Mean over the classes: A is higher.",
        "Classes: A is higher in liver; no difference shown in the others.",
        "One seed of A and B: this is about these trained models; how far trainings differ by chance is not covered.",
    ]


def test_the_run_that_is_higher_may_be_either(dice):
    sides = compare_runs({"a": run(better(dice, (0.1, -0.1)))}, {"b": run(dice)}).conclusions()
    assert sides[1] == "Classes: A is higher in liver; B is higher in gallbladder."
    assert sides[0] == "Mean over the classes: no difference shown."


def test_a_run_does_not_differ_from_itself(dice):
    comparison = compare_runs({"a": run(dice)}, {"a": run(dice)})
    assert [(row.low, row.high, row.p) for row in comparison.classes] == [(0, 0, 1)] * 2
    assert comparison.conclusions()[:2] == [
        "Mean over the classes: no difference shown.",
        "Classes: no difference shown in any.",
    ]


def test_what_the_interval_does_not_support_is_not_said(dice):
    # Every case gains, so the test is sure; but trainings differ by more than that.
    a = {str(i): run(dice + shift) for i, shift in enumerate((-0.2, 0.05, 0.3))}
    b = {str(i): run(dice + shift) for i, shift in enumerate((-0.25, 0.0, 0.25))}
    comparison = compare_runs(a, b)
    assert comparison.mean.p < 0.001
    assert comparison.mean.low < 0 < comparison.mean.high
    assert comparison.conclusions() == [
        "Mean over the classes: no difference shown.",
        "Classes: no difference shown in any.",
    ]


def test_what_the_corrected_test_does_not_support_is_not_said(dice):
    few = dice[:5]  # p is at least 2 / 2^5
    comparison = compare_runs({"a": run(better(few))}, {"b": run(few)})
    assert comparison.classes[0].low > 0
    assert comparison.classes[0].p == pytest.approx(2 / 32)
    assert comparison.conclusions()[1:3] == [
        "Classes: no difference shown in any.",
        "No class can differ with so few cases: of 5 cases and 2 classes, p (Holm) is at least 0.125.",
    ]


def test_a_class_that_a_case_lacks_does_not_count_there(dice):
    dice[3:, 1] = math.nan
    comparison = compare_runs({"a": run(better(dice, (0.1, 0.1)))}, {"b": run(dice)})
    assert [row.cases for row in comparison.classes] == [12, 3]
    assert comparison.mean.cases == 12
    assert comparison.mean.mean_b == pytest.approx((dice[:, 0].mean() + dice[:3, 1].mean()) / 2)


def test_a_class_of_no_case_is_not_tested(dice):
    dice[:, 1] = math.nan
    comparison = compare_runs({"a": run(better(dice))}, {"b": run(dice)})
    assert comparison.classes[0].p_holm == comparison.classes[0].p
    assert comparison.table().splitlines()[5].split() == ["gallbladder", "0", "-", "-", "-", "-", "-", "-"]
    assert comparison.to_dict()["classes"][1]["p"] is None


def test_another_metric_can_be_compared(dice):
    comparison = compare_runs({"a": run(dice)}, {"b": run(dice)}, metric="hd95_mm")
    assert comparison.metric.heading == "HD95 mm"
    assert comparison.classes[0].mean_a == pytest.approx(4 * dice[:, 0].mean())


def test_the_order_of_cases_and_classes_does_not_matter(dice):
    other = better(dice)
    turned = run(other[::-1, ::-1], (NAMES[0], *NAMES[:0:-1]), cases=[f"case_{i}" for i in reversed(range(12))])
    straight, found = (compare_runs({"a": run(dice)}, {"b": b}).to_dict() for b in (run(other), turned))
    assert straight == found


def test_the_table_names_rule_runs_and_numbers(dice):
    comparison = compare_runs({"x/0": run(better(dice)), "x/1": run(better(dice, seed=2))}, {"y": run(dice)})
    lines = comparison.table().splitlines()
    assert lines[:3] == ["Dice by the sound rule, 12 cases", "A: x/0, x/1", "B: y"]
    assert lines[3].split("  ")[0] == "class"
    row = comparison.classes[0]
    assert lines[4].split() == [
        *(
            "liver",
            "12",
            f"{row.mean_a:.3f}",
            "±",
            f"{row.spread_a:.3f}",
            f"{row.mean_b:.3f}",
            f"{row.difference:+.3f}",
        ),
        *(f"{row.low:+.3f}", "to", f"{row.high:+.3f}", f"{row.p:.3f}", f"{row.p_holm:.3f}"),
    ]
    assert lines[6].startswith("mean")
    assert lines[8:] == comparison.conclusions()


def test_the_dictionary_is_json_and_has_all_of_it(dice):
    comparison = compare_runs({"a": run(better(dice))}, {"b": run(dice)}, metric="nsd_2mm")
    found = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert (found["rule"], found["metric"], found["cases"]) == ("sound", "nsd_2mm", 12)
    assert (found["runs_a"], found["runs_b"]) == (["a"], ["b"])
    assert [row["name"] for row in (*found["classes"], found["mean"])] == ["liver", "gallbladder", "mean"]
    assert [row["higher"] for row in found["classes"]] == ["A", None]
    assert found["mean"]["spread_a"] is None
    assert found["conclusions"] == comparison.conclusions()


class TestRefused:
    def refused(self, message, a, b, **kwargs):
        with pytest.raises(ValueError, match=message):
            compare_runs({"first": a}, {"second": b}, **kwargs)

    def test_other_cases(self, dice):
        message = "runs must be scored on the same cases, got case_0 in first alone and case_12 in second alone"
        self.refused(message, run(dice), run(dice, cases=[f"case_{i}" for i in range(1, 13)]))

    def test_fewer_cases(self, dice):
        message = "runs must be scored on the same cases, got case_11 in first alone"
        self.refused(message, run(dice), run(dice[:11]))

    def test_other_classes(self, dice):
        message = "runs must be of the same classes, got gallbladder in first alone and spleen in second alone"
        self.refused(message, run(dice), run(dice, ("background", "liver", "spleen")))

    def test_another_rule(self, dice):
        message = "runs must be scored by the same rule, got sound in first alone and published in second alone"
        self.refused(message, run(dice), run(dice, rule="published"))

    def test_another_grid(self, dice):
        other = run(dice)
        other.grid = "scan"
        message = "runs must be scored on the same grid, got grid file in first alone and grid scan in second alone"
        self.refused(message, run(dice), other)

    def test_other_labels(self, dice):
        other = dice.copy()
        other[2, 1] = math.nan
        message = "runs must be scored on the same labels, got gallbladder of case_2 in that of first alone"
        self.refused(message, run(dice), run(other))

    def test_a_seed_of_its_own_cases(self, dice):
        with pytest.raises(ValueError, match="got case_11 in 0 alone"):
            compare_runs({"0": run(dice), "1": run(dice[:11])}, {"0": run(dice)})

    def test_runs_of_the_same_name_are_both_checked(self, dice):
        with pytest.raises(ValueError, match="same cases"):
            compare_runs({"0": run(dice)}, {"0": run(dice[:11])})

    def test_a_single_case(self, dice):
        self.refused("runs must have at least two cases to compare, got 1", run(dice[:1]), run(dice[:1]))

    def test_a_metric_that_the_rule_has_not(self, dice):
        message = r"metric must be one of the sound rule \(dice, nsd_2mm, assd_mm, hd95_mm\), got iou"
        self.refused(message, run(dice), run(dice), metric="iou")
