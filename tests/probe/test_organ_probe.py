from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.metrics import DiceMetric
from torch.nn import functional as F

from dinomix_monai.probe import (
    LabeledPoints,
    OrganProbe,
    PointFeatures,
    ProbeTable,
    cross_validated_dice,
    gather_points,
    point_dice,
)


def points(seed, shift=0.0, count=200):
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(count, 2, generator=generator)
    return LabeledPoints(features, (features[:, 0] > 0.5 + shift).long())


def test_the_dice_of_points_is_that_of_monai():
    found, labels = (torch.randint(0, 4, (500,), generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    one_hot = [F.one_hot(values, 4).T[None, :, :, None].float() for values in (found, labels)]
    expected = DiceMetric(include_background=False, reduction="none")(*one_hot)[0]
    np.testing.assert_allclose(point_dice(found, labels, 4), expected, rtol=1e-6)


def test_a_class_without_points_has_no_dice_and_a_missed_one_has_0():
    found, labels = torch.tensor([0, 1, 1, 3]), torch.tensor([0, 1, 2, 0])
    np.testing.assert_allclose(point_dice(found, labels, 4), [2 / 3, 0, np.nan])


def test_each_scan_is_predicted_by_the_others():
    # The last scan has another border, which only it knows.
    scans = [points(0), points(1), points(2, shift=0.3)]
    alone = OrganProbe.fit(PointFeatures(None), scans, 2).dice(scans, 2)
    assert cross_validated_dice(scans, 2) < alone
    assert cross_validated_dice(scans[:2], 2) > 0.95
    with pytest.raises(ValueError, match="scans must be two at least, got 1"):
        cross_validated_dice(scans[:1], 2)


def phantom_scan(seed):
    generator = torch.Generator().manual_seed(seed)
    label = torch.zeros(1, 24, 24, 6)
    label[:, 4:14, 6:16], label[:, 16:22, 6:16] = 1, 2
    image = 0.2 + 0.3 * label + 0.02 * torch.randn(label.shape, generator=generator)
    affine = torch.diag(torch.tensor([2.0, 2.0, 5.0, 1.0]))
    return {"image": MetaTensor(image, affine=affine), "label": MetaTensor(label, affine=affine)}


def test_slices_are_spread_over_the_scan():
    features = PointFeatures(None, point_mm=4.0)
    scan = phantom_scan(0)
    assert len(gather_points(features, scan, 2).labels) == 2 * 12 * 12  # there is no air
    whole = gather_points(features, scan, 100)
    assert whole.features.shape == (6 * 12 * 12, 33)
    middle = features(scan["image"], [1, 4]).flatten(0, 2)
    torch.testing.assert_close(gather_points(features, scan, 2).features, middle)


@pytest.mark.parametrize("air", [0.0, 0.09])
def test_air_around_the_body_gives_no_points_and_is_background(air):
    # A window that begins below the darkest voxel leaves air above 0.
    features, scan = PointFeatures(None, point_mm=2.0), phantom_scan(0)
    scan["image"][:, :, 20:] = air
    scan["image"][:, 8, 8] = air  # gas in the body
    in_body = features.in_body(scan["image"], [0])
    # With two points beside the body.
    assert in_body[0].any(0).tolist() == [True] * 22 + [False] * 2
    assert in_body[0, 8, 8]
    assert len(gather_points(features, scan, 6).labels) == 6 * 24 * 22
    probe = OrganProbe.fit(features, [gather_points(features, phantom_scan(1), 3)], 3)
    probe.linear.linear.bias[2] = 100  # which says class 2 everywhere
    found = probe.segment(scan["image"])
    assert (found[:, :, :21] == 2).all()
    assert (found[:, :, 23:] == 0).all()


def test_a_probe_segments_a_scan_that_it_has_not_seen():
    features = PointFeatures(None, point_mm=2.0)
    fitted = [gather_points(features, phantom_scan(seed), 3) for seed in (0, 1)]
    # With one class more than there are points of.
    probe = OrganProbe.fit(features, fitted, 4)
    scan = phantom_scan(2)
    found = probe.segment(scan["image"])
    assert found.shape == scan["label"].shape
    assert found.dtype == torch.uint8
    assert (found == scan["label"]).float().mean() > 0.97
    assert torch.equal(probe.segment(scan["image"], [4])[..., 0], found[..., 4])


def test_the_table_names_classes_and_means():
    dice = {"teacher": np.array([0.5, np.nan, 0.7]), "intensities": np.array([0.25, np.nan, 0.0])}
    table = str(ProbeTable(["background", "liver", "vein", "gland"], np.array([90, 0, 3]), dice, smallest=2))
    assert table.splitlines() == [
        "class       points  teacher  intensities",
        "liver           90    0.500        0.250",
        "vein             0        -            -",
        "gland            3    0.700        0.000",
        "mean                  0.600        0.125",
        "2 smallest            0.700        0.000",
    ]
