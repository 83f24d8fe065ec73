from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from dinomix_monai.data.anatomy import ORGANS, Anatomy, Population, scan

SIZE = (40, 40, 28)
STILL = Population(rotation_rad=0, scale=(1, 1), shift=0, phase=(1, 1), variation=0, noise_hu=(10, 10))
"""Patients that differ in nothing but a smooth warp and their brightness."""


def patient(seed=0, size=SIZE, **changes):
    return Anatomy(np.random.RandomState(seed), replace(STILL, **changes), size)


def center(anatomy, organ):
    """Mean index of an organ along x (left), y (back) and z (head)."""
    return np.argwhere(anatomy.label.reshape(anatomy.size) == ORGANS.index(organ) + 1).mean(0)


def brightness(anatomy, organ):
    return float(np.median(anatomy.hu[anatomy.label == ORGANS.index(organ) + 1]))


def voxels(anatomy, organ):
    return int((anatomy.label == ORGANS.index(organ) + 1).sum())


def test_thirteen_organs_have_labels_1_to_13():
    assert len(set(ORGANS)) == 13
    label = patient(size=(80, 80, 56)).label
    assert np.unique(label).tolist() == list(range(14))
    assert label.dtype == np.uint8


def test_organs_lie_where_they_lie_in_the_body():
    anatomy = patient()
    for right in ("liver", "gallbladder", "right kidney", "right adrenal gland", "inferior vena cava"):
        assert center(anatomy, right)[0] < SIZE[0] / 2, right
    for left in ("spleen", "stomach", "left kidney", "left adrenal gland", "aorta"):
        assert center(anatomy, left)[0] > SIZE[0] / 2, left
    for behind in ("right kidney", "left kidney", "aorta"):
        assert center(anatomy, behind)[1] > max(center(anatomy, "stomach")[1], center(anatomy, "pancreas")[1]), behind
    for side in ("right", "left"):
        assert center(anatomy, f"{side} adrenal gland")[2] > center(anatomy, f"{side} kidney")[2]
    assert center(anatomy, "esophagus")[2] > center(anatomy, "stomach")[2]


@pytest.mark.parametrize("seed", range(3))
def test_the_same_random_state_gives_the_same_patient(seed):
    first, again, other = patient(seed), patient(seed), patient(seed + 1)
    assert (first.label == again.label).all()
    assert (first.hu == again.hu).all()
    assert (first.label != other.label).any()


@pytest.mark.parametrize(
    ("phase", "arterial", "venous"),
    [
        (0.0, math.exp(-121 / 9), 0),
        (0.4, math.exp(-1), 0),
        (0.55, 1, (3 / 11) ** 1.5),
        (0.95, math.exp(-64 / 9), 1),
        (1.0, math.exp(-9), 1),
    ],
)
def test_contrast_agent_is_arterial_first_and_venous_later(phase, arterial, venous):
    anatomy = patient(phase=(phase, phase))
    assert anatomy.arterial == pytest.approx(arterial)
    assert anatomy.venous == pytest.approx(venous)


def test_contrast_agent_brightens_the_aorta_before_the_cava():
    plain, arterial, venous = (patient(phase=(phase, phase)) for phase in (0.0, 0.55, 1.0))
    assert abs(brightness(plain, "aorta") - brightness(plain, "inferior vena cava")) < 40
    assert brightness(arterial, "aorta") > brightness(arterial, "inferior vena cava") + 80
    assert brightness(venous, "inferior vena cava") > brightness(plain, "inferior vena cava") + 50
    assert brightness(venous, "liver") > brightness(plain, "liver") + 30


def test_a_phase_is_drawn_from_its_range():
    phases = [patient(seed, size=(16, 16, 16), phase=(0.2, 0.6)).phase for seed in range(30)]
    assert 0.2 <= min(phases) < 0.3
    assert 0.5 < max(phases) <= 0.6


def test_a_larger_body_has_larger_organs():
    ratios = [voxels(patient(scale=(1.1, 1.1)), organ) / voxels(patient(), organ) for organ in ("liver", "spleen")]
    assert ratios == pytest.approx([1.1**3] * 2, rel=0.1)


def test_a_shift_of_the_field_of_view_moves_all_organs_alike():
    still, moved = patient(), patient(shift=0.1)
    offsets = [center(moved, organ) - center(still, organ) for organ in ("spleen", "stomach", "pancreas")]
    assert np.ptp(offsets, axis=0).max() < 0.7
    assert np.abs(offsets).max() > 0.7


def test_variation_moves_organs_against_one_another():
    def spread(variation):
        gaps = [
            center(anatomy, "spleen") - center(anatomy, "liver")
            for anatomy in (patient(seed, variation=variation) for seed in range(6))
        ]
        return np.std(gaps, axis=0).mean()

    assert spread(1.5) > 1.2 * spread(0.0)


@pytest.mark.parametrize("noise_hu", [10, 30])
def test_noise_has_its_standard_deviation(noise_hu):
    anatomy = patient()
    clean, noisy = (scan(anatomy, np.random.RandomState(1), noise).astype(float) for noise in (0, noise_hu))
    inside = clean > -900  # where air's lower bound cuts nothing off
    assert (noisy - clean)[inside].std() == pytest.approx(noise_hu, rel=0.03)
    assert (noisy - clean)[inside].mean() == pytest.approx(0, abs=0.5)


def test_a_scan_is_in_whole_hounsfield_units_within_their_range():
    anatomy = patient()
    image = scan(anatomy, np.random.RandomState(1), 400)
    assert image.shape == SIZE
    assert image.dtype == np.int16
    assert (image.min(), image.max() <= 1500) == (-1024, True)


def test_a_scan_shows_fat_air_and_organs():
    anatomy = patient(size=(80, 80, 56))
    image = scan(anatomy, np.random.RandomState(1), 0)
    assert np.median(image[0]) == -1000
    liver = image.ravel()[anatomy.label == ORGANS.index("liver") + 1]
    assert np.median(liver) == pytest.approx(brightness(anatomy, "liver"), abs=8)


def test_the_same_random_state_gives_the_same_scan():
    anatomy = patient()
    first, again, other = (scan(anatomy, np.random.RandomState(seed), 20) for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()
