from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from dinomix_monai.metrics import CaseScores, Outcome, score_rule

NAMES = ("background", "liver", "gallbladder")
DIAGONAL_MM = math.sqrt(16**2 + 16**2 + 40**2)  # of 16 voxels of 1 x 1 x 2.5 mm along each axis


def cube(*corner, side=4, size=(16, 16, 16), value=1):
    """A label map (1, H, W, D) with a cube from a corner on."""
    label = torch.zeros(1, *size, dtype=torch.int64)
    label[(0, *(slice(at, at + side) for at in corner))] = value
    return label


def case_scores(*cases, names=NAMES, rule="sound"):
    scores = CaseScores(names, score_rule(rule))
    for case in cases:
        scores.add(*case, spacing_mm=(1, 1, 2.5))
    return scores


@pytest.fixture
def two_cases():
    """Liver found twice, once shifted by two slices; gallbladder once missed and once invented; spleen in neither."""
    gallbladder = cube(8, 8, 8, value=2)
    return case_scores(
        ("first.nii", cube(1, 1, 1), cube(1, 1, 1) + gallbladder),
        ("second.nii", cube(1, 1, 3) + gallbladder, cube(1, 1, 1)),
        names=(*NAMES, "spleen"),
    )


def test_means_are_over_the_cases_that_have_a_class(two_cases):
    dice, nsd, assd, hd95 = two_cases.mean()
    np.testing.assert_array_equal(dice, [0.75, 0, math.nan])
    assert nsd[1] == 0
    assert assd[1] == pytest.approx(DIAGONAL_MM)
    assert hd95[:2] == pytest.approx([2.5, DIAGONAL_MM])  # 0 mm and 2 slices of 2.5 mm


def test_outcomes_are_counted_by_class(two_cases):
    assert two_cases.count(Outcome.FOUND).tolist() == [2, 0, 0]
    assert two_cases.count(Outcome.MISSED).tolist() == [0, 1, 0]
    assert two_cases.count(Outcome.INVENTED).tolist() == [0, 1, 0]
    assert two_cases.count(Outcome.INVENTED, Outcome.ABSENT).tolist() == [0, 1, 2]


def test_the_table_names_its_rule_and_has_the_means_over_cases_and_over_classes(two_cases):
    nsd, assd = two_cases.mean()[1:3, 0]
    assert two_cases.table().splitlines() == [
        "sound rule: on each label's own grid, in mm; absent classes left out, missed ones at Dice 0 and the image's "
        "diagonal",
        "class         Dice  NSD 2mm  ASSD mm  HD95 mm  missed in  invented in",
        f"liver        0.750    {nsd:.3f}     {assd:.2f}     2.50     0 of 2",
        "gallbladder  0.000    0.000    45.96    45.96     1 of 1       1 of 1",
        "spleen           -        -        -        -                  0 of 2",
        f"mean         0.375    {nsd / 2:.3f}    {(assd + DIAGONAL_MM) / 2:.2f}    {(2.5 + DIAGONAL_MM) / 2:.2f}",
    ]


def test_a_rule_without_holes_averages_over_all_cases():
    scores = case_scores(("a", cube(1, 1, 1), cube(1, 1, 1)), ("b", cube(1, 1, 1), cube(1, 1, 1)), rule="published")
    assert scores.mean().tolist() == [[100, 1], [0, 0]]
    assert scores.table().splitlines()[-1].split() == ["mean", "50.50", "0.00"]


def test_columns_are_in_line_for_short_names():
    header, row, mean = case_scores(("case", *[cube(1, 1, 1)] * 2), names=("bg", "a")).table().splitlines()[1:]
    assert header.index("NSD 2mm") + 7 == row.rindex("1.000") + 5 == mean.rindex("1.000") + 5


def test_a_class_of_no_case_is_nan_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = case_scores(("case", cube(1, 1, 1), cube(1, 1, 1)))
        assert np.isnan(scores.mean()[:, 1]).all()
        scores.table()


def test_different_shapes_are_refused():
    message = r"prediction must have the shape of label \(1, 16, 16, 16\), got \(1, 8, 16, 16\) \(case_7\)"
    with pytest.raises(ValueError, match=message):
        case_scores(("case_7", cube(1, 1, 1, size=(8, 16, 16)), cube(1, 1, 1)))


@pytest.mark.parametrize(("value", "found"), [(3, "0 to 3"), (-1, "-1 to 0")])
def test_a_value_of_no_class_is_refused(value, found):
    odd, label = cube(1, 1, 1, value=value), cube(1, 1, 1)
    with pytest.raises(ValueError, match=f"prediction must have whole values from 0 to 2, got {found} \\(case_7\\)"):
        case_scores(("case_7", odd, label))
    with pytest.raises(ValueError, match=f"label must have whole values from 0 to 2, got {found} \\(case_7\\)"):
        case_scores(("case_7", label, odd))


def test_a_value_that_is_almost_that_of_a_class_is_refused():
    label = cube(1, 1, 1)
    message = r"label must have whole values from 0 to 2, got 0 to 0\.99999 \(case_7\)"
    with pytest.raises(ValueError, match=message):
        case_scores(("case_7", label, label.float() * 0.99999))
