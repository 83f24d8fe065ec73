from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from dinomix_monai.data import Datalist
from dinomix_monai.networks import VNet, check_patch_size
from dinomix_monai.planning import DatasetFingerprint, patch_budget, plan_dataset, take_fingerprint
from dinomix_monai.volumes import Annotation, PartialLabels

CPU = patch_budget(torch.device("cpu"), 4, 2)


def scans(
    shape: Sequence[int] = (400, 400, 100),
    spacing: Sequence[float] = (0.8, 0.8, 4.0),
    mm3: Sequence[float] = (1e6, 4000.0),
    names: Sequence[str] = ("liver", "gland"),
    ranges: Sequence[tuple[float, float]] = ((-1024.0, 1500.0), (-1000.0, 1300.0)),
    at_ends: Sequence = (0.0, 0.0),
) -> DatasetFingerprint:
    return DatasetFingerprint(
        ("background", *names),
        np.array([shape] * 3),
        np.array([spacing] * 3),
        np.array(mm3),
        np.array(ranges)[:, None],
        np.broadcast_to(at_ends, (len(ranges), 2))[:, None],
        np.array([[-40, 200]]),
    )


def value(name: str, found: DatasetFingerprint, budget: tuple[int, str] = CPU, **options: Any) -> Any:
    return plan_dataset(found, budget, **options).settings[name]


SPACINGS = {
    # A CT on two cores: in plane first, and then all axes, until a scan has seven patches.
    "so many voxels that a patch would show little": (scans(), CPU, (2.36, 2.36, 4.0)),
    "as many voxels as the smallest class asks for": (scans(mm3=(1e6, 64000.0)), CPU, (4.0, 4.0, 4.0)),
    "a small volume": (scans(shape=(64, 64, 20), mm3=(1e5, 500.0)), CPU, (0.8, 0.8, 4.0)),
    "thick slices": (scans((200, 200, 10), (1.5, 1.5, 10.0), (1e5, 5e4)), CPU, (2.24, 2.24, 10.0)),
    "a large GPU": (scans(), (2**21, "much"), (1.0, 1.0, 4.0)),
}


@pytest.mark.parametrize("name", SPACINGS)
def test_spacing_is_the_scans_own_or_coarser(name: str) -> None:
    found, budget, expected = SPACINGS[name]
    plan = plan_dataset(found, budget)
    spacing = np.array(plan.settings["spacing_mm"])
    np.testing.assert_allclose(spacing, expected, rtol=0.01)
    assert (spacing >= found.spacing_mm - 0.005).all()
    limits = (found.spacing_mm.prod(), np.nanmin(found.class_mm3) / 1000, found.extent_mm.prod() / 7 / budget[0])
    np.testing.assert_allclose(spacing.prod(), max(limits), rtol=0.03)
    assert "gland, the smallest class" in plan.reasons["spacing_mm"]


def test_a_class_that_all_but_vanishes_is_warned_of() -> None:
    assert plan_dataset(scans(mm3=(1e6, 9000.0)), CPU).warnings == []
    (warning,) = plan_dataset(scans(mm3=(1e6, 1000.0)), CPU).warnings
    assert "gland has 45 voxels at this voxel size" in warning
    assert "--memory_gb" in warning
    (warning,) = plan_dataset(scans((50, 50, 20), (4.0, 4.0, 5.0), (1e6, 1000.0)), CPU).warnings
    assert "Only finer scans would change it." in warning


@pytest.mark.parametrize("shape", [(512, 512, 100), (200, 400, 60), (300, 300, 900), (64, 64, 20), (40, 60, 7)])
@pytest.mark.parametrize("spacing", [(0.8, 0.8, 4.0), (1.0, 1.0, 1.0), (1.5, 1.5, 10.0), (5.0, 0.7, 0.7)])
@pytest.mark.parametrize("stem", [1, 2])
def test_a_network_can_be_trained_on_the_patch(shape: Sequence[int], spacing: Sequence[float], stem: int) -> None:
    plan = plan_dataset(scans(shape, spacing), CPU, stem)
    patch, stem_stride = plan.settings["patch_size"], plan.settings["network_def#stem_stride"]
    strides = plan.settings["network_def#strides"]
    network = VNet(
        out_channels=3, n_filters=2, num_convs=(1, 1, 1, 1), strides=strides, stem_stride=stem_stride, norm="instance"
    )
    check_patch_size(network, patch)
    assert max(stem_stride) == stem
    (module,) = plan.settings.get("distiller#modules", ["decoder.1"])
    assert module.removeprefix("decoder.") in network.decoder
    level = int(module.removeprefix("decoder."))
    assert plan.settings["token_cell"] == np.prod([stem_stride, *strides[:level]], axis=0).tolist()
    field = np.minimum(np.array(shape) * spacing, 500) / plan.settings["spacing_mm"]
    least = 2 ** (np.prod([stem_stride, *strides], axis=0) > 1) * np.prod([stem_stride, *strides], axis=0)
    assert math.prod(patch) <= max(min(CPU[0], 0.5 * math.prod(field)), math.prod(least))
    # None of the axes shows much less of a scan than another, but for those that a patch covers.
    share = np.array(patch) / field
    assert share.min() >= 0.45 * min(share.max(), 1)


def test_an_axis_with_long_voxels_is_halved_later() -> None:
    plan = plan_dataset(scans((200, 200, 40), (1.5, 1.5, 6.0)), CPU)
    assert plan.settings["network_def#stem_stride"] == [2, 2, 1]
    assert plan.settings["network_def#strides"] == [[2, 2, 1], [2, 2, 2], [2, 2, 2]]
    assert plan.settings["token_cell"] == [4, 4, 1]


FLIPS = {
    ("liver", "left kidney"): 0.0,
    ("adrenal_gland_right", "x"): 0.0,
    ("kidney_l", "kidney_r"): 0.0,
    ("liver", "spleen"): 0.5,
    ("brightness", "leftover"): 0.5,
}


@pytest.mark.parametrize("names", FLIPS)
def test_scans_are_mirrored_only_where_no_class_has_a_side(names: Sequence[str]) -> None:
    assert value("flip_prob", scans(names=names)) == [FLIPS[names], 0.0, 0.0]


# Ranges of scans, the share of voxels at their ends, whether they are taken for CT, and whether that is in doubt.
WHOLE, CUT, AIR = (0.0, 0.0), (0.3, 0.01), (0.3, 0.0)
RANGES = {
    "CT": (((-1024, 1500), (-1000, 3000)), WHOLE, True, ""),
    "CT, of which one has no air": (((-1024, 1500), (-1000, 3000), (-90, 1000)), WHOLE, True, ""),
    "CT, cut to a window": (((-125, 275), (-125, 275)), CUT, True, ""),
    "one CT, cut to a window": (((-160, 240),), CUT, True, ""),
    "CTs, each cut to a window of its own": (((-160, 240), (-100, 400)), CUT, True, ""),
    "CTs, most of them cut": (((-160, 240), (-1024, 1500), (-200, 300)), (AIR, WHOLE, AIR), True, ""),
    "CTs, cut below and resampled": (((-57.3, 900), (-57.3, 1400)), WHOLE, True, ""),
    "one CT without air": (((-120, 900),), WHOLE, False, "reach down to -120, and neither reach air"),
    "CTs, one of them shifted": (((0, 400), (-160, 240), (-160, 240)), CUT, False, "reach down to -160, and neither"),
    "one scan from 0, cut above": (((0, 80),), CUT, False, "are cut off at 80"),
    "MR or CT, scaled and cut": (((0, 255), (0, 255)), CUT, False, "are cut off at 255"),
    "MR": (((0, 900), (0, 4000)), AIR, False, ""),
    "one MR": (((0, 900),), AIR, False, ""),
    "MR, each cut at its own percentile": (((0, 900), (0, 4000)), CUT, False, ""),
    "MR, each scaled to 1000": (((0, 1000), (0, 1000)), AIR, False, ""),
    "MR, each scaled to -1 to 1": (((-1, 1), (-1, 1)), AIR, False, ""),
    "MR by z-score": (((-2.1, 5), (-1.2, 9)), AIR, False, ""),
}


@pytest.mark.parametrize("name", RANGES)
def test_intensities_tell_whether_they_mean_the_same_in_all_scans(name: str) -> None:
    ranges, at_ends, is_calibrated, doubt = RANGES[name]
    found = scans(ranges=ranges, at_ends=at_ends)
    plan = plan_dataset(found, CPU)
    assert (plan.settings["intensity_window"] is not None) == is_calibrated
    if doubt:
        warning = plan.doubts["intensity_window"]
        assert warning.startswith(f"Intensities {doubt}")
        assert "pass --modality CT (the setting plan#modality), or call the channel CT in dataset.json" in warning
        assert f"Warning: {warning}" in str(plan)
        assert plan.overlay("")["_desc_"]["intensity_window"].endswith(warning)
    assert bool(plan.doubts) == bool(doubt)
    for given in (True, False):
        plan = plan_dataset(found, CPU, is_calibrated=[given])
        assert (plan.settings["intensity_window"] is not None) == given
        assert not plan.doubts


def test_there_is_no_doubt_about_a_window_that_is_given() -> None:
    plan = plan_dataset(scans(ranges=((0, 80),), at_ends=CUT), CPU)
    del plan.settings["intensity_window"]
    assert "cut off" not in str(plan)


def test_the_window_has_the_organs_and_a_margin_within_what_scans_have() -> None:
    assert value("intensity_window", scans(ranges=((-1024, 220), (-1024, 220)))) == [-100.0, 220.0]


def test_each_channel_has_a_window_of_its_own_modality() -> None:
    alone = scans()
    both = replace(
        alone,
        ranges=np.concatenate([alone.ranges, [[[0, 9.0]], [[0, 31.0]]]], axis=1),
        at_ends=np.zeros((2, 2, 2)),
        foreground=np.array([[-40, 200], [0.5, 6]]),
        channel_names=("CT", "PET"),
    )
    plan = plan_dataset(both, CPU)
    assert plan.settings["intensity_window"] == [[-100.0, 260.0], None]
    assert re.search(
        r"^CT: Intensities mean the same.* PET: Intensities mean something else", plan.reasons["intensity_window"]
    )
    assert value("intensity_window", both, is_calibrated=[False, True]) == [None, [0.0, 7.375]]


@pytest.mark.parametrize(("name", "is_ct"), [("CT", True), ("ct venous", True), ("CTA", True), ("T1_ct", False)])
def test_a_channel_is_what_it_is_called(name: str, is_ct: bool) -> None:
    without_air = scans(ranges=((-100, 500),))
    assert value("intensity_window", without_air) is None
    plan = plan_dataset(replace(without_air, channel_names=(name,)), CPU)
    assert plan.settings["intensity_window"] == ([-100.0, 260.0] if is_ct else None)
    assert f"(dataset.json calls them {name})" in plan.reasons["intensity_window"]
    assert not plan.doubts


def test_mr_that_is_called_so_is_not_ct_however_far_down_it_reaches() -> None:
    deep = scans()
    assert value("intensity_window", deep) == [-100.0, 260.0]
    assert value("intensity_window", replace(deep, channel_names=("MRI",))) is None


def test_the_doubtful_one_of_several_channels_is_named() -> None:
    alone = scans(ranges=((0, 80), (0, 80)), at_ends=CUT)
    both = replace(
        alone,
        **{name: np.repeat(getattr(alone, name), 2, axis=1) for name in ("ranges", "at_ends")},
        foreground=np.array([[10, 60], [10, 60]]),
        channel_names=("CT", "second"),
    )
    (doubt,) = plan_dataset(both, CPU).doubts.values()
    assert doubt.startswith("Intensities of second are cut off at 80")
    assert "pass --modality CT,CT" in doubt


def test_a_long_scan_is_no_reason_for_large_voxels() -> None:
    body, whole = scans((400, 400, 125)), scans((400, 400, 500))
    assert value("spacing_mm", body) == value("spacing_mm", whole)
    assert value("patch_size", body) == value("patch_size", whole)


def test_a_given_spacing_is_kept_and_the_patch_goes_by_it() -> None:
    plan = plan_dataset(scans(), CPU, spacing_mm=[4.0, 4.0, -1.0])
    assert plan.settings["spacing_mm"] == [4.0, 4.0, 4.0]
    assert plan.settings["patch_size"] == [64, 64, 64]
    assert plan.settings["network_def#stem_stride"] == [2, 2, 2]


def test_more_memory_is_a_larger_patch_and_too_little_an_error() -> None:
    sizes = [patch_budget(torch.device("cpu"), 14, stem, memory)[0] for stem, memory in ((1, 6), (1, 8), (2, 5))]
    assert sizes[0] < sizes[1] < sizes[2]
    assert patch_budget(torch.device("cpu"), 14, 1, 80)[0] == patch_budget(torch.device("cpu"), 14, 1, 160)[0]
    with pytest.raises(ValueError, match=r"memory_gb must be enough for a training, at least 3, got 2\."):
        patch_budget(torch.device("cpu"), 14, 1, 2)


@pytest.fixture
def datalist(tmp_path: Path) -> Callable[..., Datalist]:
    """A labeled and an unlabeled scan; the axes of the files are A, R and S."""
    affine = np.array([[0, 2.0, 0, 0], [1.0, 0, 0, 0], [0, 0, 5.0, 0], [0, 0, 0, 1]])

    def make(label: np.ndarray) -> Datalist:
        image = np.where(label == 1, 100, np.where(label == 2, 50, -1000)).astype(np.int16)
        nib.save(nib.Nifti1Image(image, affine), tmp_path / "image.nii")
        nib.save(nib.Nifti1Image(image[:6], affine), tmp_path / "other.nii")
        # The label map of the first is stored the other way round.
        flip = np.diag([-1.0, 1, 1, 1])
        flip[0, 3] = label.shape[0] - 1
        nib.save(nib.Nifti1Image(label[::-1].copy(), affine @ flip), tmp_path / "label.nii")
        labeled = {"image": str(tmp_path / "image.nii"), "label": str(tmp_path / "label.nii")}
        names = ("background", "liver", "gland", "none")
        return Datalist(names, [labeled], [{"image": str(tmp_path / "other.nii")}], [], [])

    return make


def test_a_fingerprint_is_that_of_the_scans(datalist: Callable) -> None:
    label = np.zeros((10, 8, 6), dtype=np.uint8)
    label[:4, :4, :4] = 1
    label[5:7, 5:7, :2] = 2
    found = take_fingerprint(datalist(label))
    # R, A, S, whatever the order in the file.
    assert found.shapes.tolist() == [[8, 10, 6], [8, 6, 6]]
    assert found.spacings.tolist() == [[2, 1, 5]] * 2
    assert found.extent_mm.tolist() == [16, 8, 30]
    np.testing.assert_array_equal(found.class_mm3, [640, 80, np.nan])
    assert found.smallest_class == 2
    assert found.ranges.tolist() == [[[-1000, 100]]]
    np.testing.assert_allclose(found.at_ends, [[[408 / 480, 64 / 480]]])
    assert found.calibrations[0].is_calibrated
    # Intensities under the label map, not under its mirror image.
    assert found.foreground.tolist() == [[50, 100]]


def test_between_slices_that_somebody_has_drawn_a_class_has_its_volume_too(datalist: Callable) -> None:
    label = np.zeros((10, 8, 6), dtype=np.uint8)
    label[:4, :4, :] = 1
    label[5:7, 5:7, :] = 2
    whole, sparse = datalist(label), label.copy()
    expected = take_fingerprint(whole).class_mm3
    # Liver in the slices 0, 2 and 4 of 6, the gland in all of its slices.
    sparse[:4, :4, [1, 3, 5]] = 0
    opened = datalist(sparse)
    annotation = Annotation(slices={1: frozenset({0, 2, 4})})
    partial_labels = PartialLabels(4, {opened.training[0]["label"]: annotation})
    found = take_fingerprint(replace(opened, partial_labels=partial_labels)).class_mm3
    np.testing.assert_allclose(found, expected * [5 / 6, 1, 1])


def test_a_fingerprint_needs_organs(datalist: Callable) -> None:
    with pytest.raises(ValueError, match="got nothing but background"):
        take_fingerprint(datalist(np.zeros((10, 8, 6), dtype=np.uint8)))
    unlabeled = datalist(np.ones((10, 8, 6), dtype=np.uint8))
    unlabeled.training.clear()
    with pytest.raises(ValueError, match=r"must have labeled cases under `training`, got 0 training, 1 unlabeled"):
        take_fingerprint(unlabeled)
