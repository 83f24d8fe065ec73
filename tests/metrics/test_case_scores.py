from __future__ import annotations

import csv
import math
import warnings

import numpy as np
import pytest
import torch
from scipy import ndimage

from dinomix_monai.keys import MetricKeys
from dinomix_monai.metrics import CaseScores

NAMES = ("background", "liver", "gallbladder")


def cube(*corner, side=4, size=(16, 16, 16), value=1):
    """A label map (1, H, W[, D]) with a cube from a corner on."""
    label = torch.zeros(1, *size, dtype=torch.int64)
    label[(0, *(slice(at, at + side) for at in corner))] = value
    return label


def score(prediction, label, spacing_mm=(1, 1, 1), names=("background", "liver")):
    """Dice, ASD and HD95 of each foreground class, shape (3, classes)."""
    scores = CaseScores(names)
    scores.add("case", prediction, label, spacing_mm)
    return scores.scores[0]


def surface_distances(mask, other, spacing_mm):
    """Distance in mm of each surface voxel of a mask to the surface of another."""
    surfaces = [m & ~ndimage.binary_erosion(m) for m in (mask, other)]
    return ndimage.distance_transform_edt(~surfaces[1], sampling=spacing_mm)[surfaces[0]]


def test_dice_is_that_of_voxels_counted_by_hand():
    label = cube(2, 2, 2, side=8)  # 512 voxels
    prediction = cube(2, 2, 4, side=8)  # 512 voxels, 8 * 8 * 6 of them inside
    assert score(prediction, label)[0, 0] == pytest.approx(2 * 384 / (512 + 512))


def test_a_perfect_prediction_has_dice_1_and_distance_0():
    np.testing.assert_array_equal(score(cube(3, 3, 3), cube(3, 3, 3)), [[1], [0], [0]])


@pytest.mark.parametrize(("axis", "distance_mm"), [(0, 3 * 0.5), (1, 3 * 2.0), (2, 3 * 5.0)])
def test_parallel_planes_are_their_distance_in_mm_apart(axis, distance_mm):
    label, prediction = torch.zeros(2, 1, 10, 10, 10, dtype=torch.int64)
    label.movedim(axis + 1, 0)[2] = 1
    prediction.movedim(axis + 1, 0)[5] = 1
    dice, asd, hd95 = score(prediction, label, (0.5, 2.0, 5.0))[:, 0]
    assert dice == 0
    assert asd == pytest.approx(distance_mm)
    assert hd95 == pytest.approx(distance_mm)


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (0.7, 1.3, 5)], ids=["isotropic", "anisotropic"])
@pytest.mark.parametrize("corner", [(5, 4, 6), (9, 2, 4), (4, 4, 12)], ids=["overlapping", "beside", "at the rim"])
def test_distances_are_those_of_scipy(corner, spacing_mm):
    # A bigger prediction, so that the two directions differ.
    label, prediction = cube(4, 4, 4), cube(*corner, side=6)
    masks = [x[0].numpy() == 1 for x in (prediction, label)]
    there, back = surface_distances(*masks, spacing_mm), surface_distances(*masks[::-1], spacing_mm)
    _, asd, hd95 = score(prediction, label, spacing_mm)[:, 0]
    assert asd == pytest.approx(np.concatenate([there, back]).mean(), rel=1e-5)
    assert hd95 == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), rel=1e-5)


def test_slices_are_scored_too():
    label, prediction = cube(2, 2, size=(8, 8)), cube(2, 3, size=(8, 8))
    there, back = (
        surface_distances(a[0].numpy() == 1, b[0].numpy() == 1, (1, 2))
        for a, b in ((prediction, label), (label, prediction))
    )
    dice, asd, hd95 = score(prediction, label, (1, 2))[:, 0]
    assert dice == pytest.approx(0.75)
    assert asd == pytest.approx(np.concatenate([there, back]).mean())
    assert hd95 == pytest.approx(2)


def test_each_class_is_scored_on_its_own():
    label = cube(1, 1, 1) + cube(8, 8, 8, value=2)
    prediction = cube(1, 1, 1) + cube(8, 8, 10, value=2)
    scores = score(prediction, label, names=NAMES)
    np.testing.assert_allclose(scores[:, 0], [1, 0, 0])
    assert scores[0, 1] == pytest.approx(0.5)
    assert scores[2, 1] == pytest.approx(2)


def test_a_class_that_the_label_lacks_is_left_out():
    found = cube(1, 1, 1) + cube(8, 8, 8, value=2)
    for prediction in (cube(1, 1, 1), found):
        assert np.isnan(score(prediction, cube(1, 1, 1), names=NAMES)[:, 1]).all()
    scores = CaseScores(NAMES)
    scores.add("without", found, cube(1, 1, 1), (1, 1, 1))
    scores.add("with", found, found, (1, 1, 1))
    assert [scores.mean()[metric][1] for metric in (MetricKeys.DICE, MetricKeys.ASD, MetricKeys.HD95)] == [1, 0, 0]
    assert scores.missed().tolist() == [0, 0]


def test_a_missed_class_has_dice_0_no_distance_and_is_counted():
    label = cube(1, 1, 1) + cube(8, 8, 8, value=2)
    np.testing.assert_array_equal(score(cube(1, 1, 1), label, names=NAMES)[:, 1], [0, math.nan, math.nan])
    scores = CaseScores(NAMES)
    scores.add("missed", cube(1, 1, 1), label, (1, 1, 1))
    scores.add("found", label, label, (1, 1, 1))
    means = scores.mean()
    assert means[MetricKeys.DICE].tolist() == [1, 0.5]
    assert means[MetricKeys.HD95].tolist() == [0, 0]
    assert scores.missed().tolist() == [0, 1]


def test_a_class_found_in_the_wrong_place_has_distances_and_is_not_missed():
    scores = CaseScores(("background", "liver"))
    scores.add("beside", cube(1, 1, 1), cube(1, 1, 9), (1, 1, 1))
    assert scores.scores[0][0, 0] == 0
    assert scores.scores[0][2, 0] == 8
    assert scores.missed().tolist() == [0]


def test_a_class_of_no_case_is_nan_without_a_warning():
    scores = CaseScores(NAMES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores.add("case", cube(1, 1, 1), cube(1, 1, 1), (1, 1, 1))
        assert np.isnan(scores.mean()[MetricKeys.DICE][1])
        scores.table()


@pytest.fixture
def two_cases():
    """Both livers found, one of them shifted; one gallbladder missed, the other absent."""
    scores = CaseScores((*NAMES, "spleen"))
    both = cube(1, 1, 1) + cube(8, 8, 8, value=2)
    scores.add("first.nii", cube(1, 1, 1), both, (1, 1, 2.5))
    scores.add("second.nii", cube(1, 1, 3), cube(1, 1, 1), (1, 1, 2.5))
    return scores


def test_the_table_has_the_means_over_cases_and_over_classes(two_cases):
    means = two_cases.mean()
    asd = means[MetricKeys.ASD][0]
    assert means[MetricKeys.DICE].tolist()[:2] == [0.75, 0]
    assert means[MetricKeys.HD95][0] == 2.5  # 0 mm and 2 slices of 2.5 mm
    assert two_cases.table().splitlines() == [
        "class         Dice   ASD mm  HD95 mm   missed in",
        f"liver        0.750  {asd:7.2f}     2.50",
        "gallbladder  0.000        -        -   1 of 1",
        "spleen           -        -        -",
        f"mean         0.375  {asd:7.2f}     2.50",
    ]


def test_columns_are_in_line_for_short_names():
    scores = CaseScores(("bg", "a"))
    scores.add("case", cube(1, 1, 1), cube(1, 1, 1), (1, 1, 1))
    header, row, mean = scores.table().splitlines()
    assert header.index("Dice") + 4 == row.index("1.000") + 5 == mean.index("1.000") + 5


def test_the_csv_has_a_row_for_each_case_and_class(two_cases, tmp_path):
    path = two_cases.write_csv(tmp_path / "new folder" / "metrics.csv")
    with path.open() as file:
        rows = list(csv.reader(file))
    asd = two_cases.scores[1][1, 0]
    assert rows == [
        ["case", "class", "dice", "asd_mm", "hd95_mm"],
        ["first.nii", "liver", "1.0000", "0.0000", "0.0000"],
        ["first.nii", "gallbladder", "0.0000", "", ""],
        ["first.nii", "spleen", "", "", ""],
        ["second.nii", "liver", "0.5000", f"{asd:.4f}", "5.0000"],
        ["second.nii", "gallbladder", "", "", ""],
        ["second.nii", "spleen", "", "", ""],
    ]


def test_different_shapes_are_refused():
    message = r"prediction must have the shape of label \(1, 16, 16, 16\), got \(1, 8, 16, 16\) \(case_7\)"
    with pytest.raises(ValueError, match=message):
        CaseScores(NAMES).add("case_7", cube(1, 1, 1, size=(8, 16, 16)), cube(1, 1, 1), (1, 1, 1))
