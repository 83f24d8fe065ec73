from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from monai.transforms import RandAffineGrid
from scipy.stats import binomtest, chisquare

from dinomix_monai.transforms import DIRECTIONS, PICCutMix
from tests.transforms.pic_batches import (
    COUNTS,
    batch_of,
    full,
    noise_batch,
    noise_mixer,
    one_voxel_mixer,
    plain_formula,
)

# Which class.


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("labeled", [True, False], ids=["labeled", "unlabeled"])
def test_classes_are_drawn_as_often_as_the_formula_says(labeled, progress):
    mixer = one_voxel_mixer(beta=0.7, curriculum=0.8, gamma=2.0)
    mixer.add_donors([(full(c)[0], full(1)[0], torch.zeros(3)) for c in (1, 2, 3, 4)], [labeled] * 4)
    mixer.class_curriculum.unlabeled_counts = np.array(COUNTS[:1] + COUNTS[:0:-1], dtype=float)
    mixer.progress = progress
    drawn = Counter(mixer.sampler.draw_class(labeled) for _ in range(4000))
    counts = COUNTS[1:] if labeled else COUNTS[:0:-1]
    expected = 4000 * np.array(plain_formula(counts, progress, 0.7, 0.8, 2.0))
    assert chisquare([drawn[c] for c in (1, 2, 3, 4)], expected).pvalue > 0.001


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_classes_of_labeled_patches_are_pasted_as_often_as_the_formula_says(progress):
    label = batch_of([1, 2, 3, 4, 0])
    mixer = one_voxel_mixer(directions={"labeled_to_unlabeled": 1})
    mixer.progress = progress
    mixed, _ = mixer(label, torch.ones_like(label), labeled=[True] * 4 + [False], num_mixed=3000)
    pasted = Counter(mixed.amax((1, 2, 3, 4)).int().tolist())
    expected = 3000 * np.array(plain_formula(COUNTS[1:], progress, 0.5, 1, 1))
    assert chisquare([pasted[c] for c in (1, 2, 3, 4)], expected).pvalue > 0.001
    assert pasted[0] == 0


def test_a_class_without_donors_is_not_drawn():
    label = batch_of([1, 3, 0])
    mixer = one_voxel_mixer(directions={"labeled_to_unlabeled": 1})
    mixed, _ = mixer(label, torch.ones_like(label), labeled=[True, True, False], num_mixed=200)
    assert set(mixed.amax((1, 2, 3, 4)).int().tolist()) == {1, 3}


def test_the_share_of_blind_boxes_follows_the_imbalance():
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert PICCutMix([10, 1, 3]).sampler.blind_share == pytest.approx(entropy / math.log(2))
    assert PICCutMix([10, 3, 3]).sampler.blind_share == pytest.approx(1)
    assert PICCutMix([10, 3, 3], blind_share=0.2).sampler.blind_share == 0.2


@pytest.mark.parametrize("blind_share", [0.25, 0.75])
def test_the_share_of_blind_boxes_is_kept(blind_share):
    label = torch.zeros(2, 1, 4, 4)
    label[0, 0, 0, 0] = 1
    image = batch_of([1, 0], (4, 4))
    mixer = one_voxel_mixer([1, 1], directions={"labeled_to_unlabeled": 1}, blind_share=blind_share)
    mixed = mixer(label, torch.ones_like(label), image, labeled=[True, False], num_mixed=1000)[2]
    elsewhere = int(1000 - mixed[:, 0, 0, 0].sum())
    assert binomtest(elsewhere, 1000, blind_share * 15 / 16).pvalue > 0.001


# From where, to where.


PATCHES = {"labeled": {10, 11}, "unlabeled": {20, 21, 22}}
"""Values of the patches that :func:`mixed_values` mixes."""


def mixed_values(direction, num_mixed=100, **kwargs):
    """For each mixed patch the value of the recipient and those of the donors: labeled 10, 11; unlabeled 20 to 22."""
    values = [10, 20, 11, 21, 22]
    image, label = batch_of(values, (8, 8, 8)), batch_of([1] * 5, (8, 8, 8))
    mixer = one_voxel_mixer([1, 1], directions=direction, num_boxes=2, **kwargs)
    labeled = [value < 20 for value in values]
    mixed = mixer(label, label, image, labeled=labeled, num_mixed=num_mixed)[2]
    counts = [Counter(patch.flatten().int().tolist()).most_common() for patch in mixed]
    return [(first[0], {value for value, _ in rest}) for first, *rest in counts]


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_direction_takes_boxes_only_from_its_origin_and_brings_them_only_to_its_destination(direction):
    origin, destination = direction.split("_to_")
    mixed = mixed_values({direction: 1})
    assert {recipient for recipient, _ in mixed} == PATCHES[destination]
    assert set().union(*(donors for _, donors in mixed)) == PATCHES[origin]


def test_directions_are_as_frequent_as_they_are_given():
    mixed = mixed_values({"labeled_to_unlabeled": 6, "unlabeled_to_labeled": 2}, num_mixed=1000)
    assert binomtest(sum(recipient >= 20 for recipient, _ in mixed), 1000, 0.75).pvalue > 0.001
    assert all((recipient >= 20) != (donor >= 20) for recipient, donors in mixed for donor in donors)


def test_by_default_all_four_directions_are_equally_frequent():
    mixed = mixed_values(None, num_mixed=2000)
    seen = Counter((donor >= 20, recipient >= 20) for recipient, donors in mixed for donor in donors)
    assert len(seen) == 4
    assert binomtest(sum(recipient >= 20 for recipient, _ in mixed), 2000, 0.5).pvalue > 0.001


def test_recipients_take_turns():
    assert [recipient for recipient, _ in mixed_values({"labeled_to_unlabeled": 1}, 5)] == [20, 21, 22, 20, 21]


@pytest.mark.parametrize("labeled", [True, False], ids=["labeled", "unlabeled"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_batch_of_one_origin_is_mixed_with_what_there_is(labeled, direction):
    image = batch_of([1, 2])
    mixed = one_voxel_mixer([1, 1], directions={direction: 1})(
        torch.ones_like(image), torch.ones_like(image), image, labeled=[labeled] * 2, num_mixed=40
    )[2]
    medians = mixed.flatten(1).median(1).values
    assert medians.tolist() == [1, 2] * 20
    is_pasted = (mixed != medians.view(-1, 1, 1, 1, 1)).any()
    assert is_pasted == (direction.startswith("labeled") == labeled)


@pytest.mark.parametrize("blind_share", [0.0, 1.0], ids=["around classes", "blind"])
@pytest.mark.parametrize("direction", ["labeled_to_labeled", "unlabeled_to_unlabeled"])
def test_no_box_is_cut_from_the_recipient_itself(direction, blind_share):
    # All are of one class and tell who they are by their image.
    label, image = batch_of([1, 1, 1]), batch_of([10, 20, 30])
    mixer = one_voxel_mixer(counts=[1, 1], directions={direction: 1}, blind_share=blind_share)
    labeled = [direction == "labeled_to_labeled"] * 3
    _, _, mixed = mixer(label, torch.ones_like(label), image, labeled=labeled, num_mixed=300)
    assert all(len(patch.unique()) == 2 for patch in mixed)


# What a recipe says.


@pytest.mark.parametrize("placement", ["same", "anatomical"])
@pytest.mark.parametrize("deformed", [False, True], ids=["as they are", "deformed"])
def test_a_recipe_names_what_was_drawn(placement, deformed):
    affine_grid = RandAffineGrid(scale_range=(0.3, 0.3, 0.3)) if deformed else None
    mixer = noise_mixer(placement=placement, num_boxes=4, affine_grid=affine_grid)
    positions = torch.tensor([[0.0, 0, 0], [1, -2, 0], [0, 3, 1], [-1, 0, 0]])
    batch, labeled = noise_batch(0)
    mixer(*batch, labeled=labeled, positions=positions, num_mixed=40)
    donors = {
        origin: {id(donor) for donor in mixer.bank.donors(origin == "labeled")} for origin in ("labeled", "unlabeled")
    }
    for recipe in mixer.recipes:
        origin, destination = recipe.direction.split("_to_")
        assert labeled[recipe.recipient] == (destination == "labeled")
        assert {id(paste.donor) for paste in recipe.pastes} <= donors[origin]
    pastes = [(recipe.recipient, paste) for recipe in mixer.recipes for paste in recipe.pastes]
    assert {paste.class_index for _, paste in pastes} == {None, 1, 2}
    for recipient, paste in pastes:
        shift = paste.donor[2] - positions[recipient] if placement == "anatomical" else torch.zeros(3)
        for axis, target in enumerate(paste.target[1:]):
            assert 0 <= target.start <= paste.center[axis] < target.stop <= 6
            assert paste.source[1 + axis] == slice(target.start - int(shift[axis]), target.stop - int(shift[axis]))
        if paste.class_index is not None and not deformed:
            voxel = tuple(center - int(by) for center, by in zip(paste.center, shift))
            assert paste.donor[0][0][voxel] == paste.class_index
            assert paste.donor[1][0][voxel] > 0


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"directions": {}}, r"directions must map some of labeled_to_unlabeled, .* to frequencies >= 0, got \{\}"),
        ({"directions": {"left_to_right": 1}}, r"directions must map some of .*, got \{'left_to_right': 1\}"),
        ({"directions": {"labeled_to_labeled": -1}}, r"directions must map .*, got \{'labeled_to_labeled': -1\}"),
        ({"directions": {"labeled_to_labeled": 0}}, r"directions must map .*, got \{'labeled_to_labeled': 0\}"),
        ({"box_fraction": [0.5]}, r"box_fraction must be two numbers 0 < least <= greatest <= 1, got \(0\.5,\)"),
        ({"box_fraction": [0, 0.5]}, r"box_fraction must be .*, got \(0, 0\.5\)"),
        ({"box_fraction": [0.5, 0.4]}, r"box_fraction must be .*, got \(0\.5, 0\.4\)"),
        ({"box_fraction": [0.5, 1.1]}, r"box_fraction must be .*, got \(0\.5, 1\.1\)"),
        ({"blind_share": 1.1}, r"blind_share must be in \[0, 1\] or None, got 1\.1"),
        ({"blind_share": -0.1}, r"blind_share must be in \[0, 1\] or None, got -0\.1"),
        ({"placement": "random"}, r"placement must be 'same' or 'anatomical', got 'random'"),
        ({"prob": -0.1}, r"prob must be in \[0, 1\], got -0\.1"),
        ({"prob": 1.1}, r"prob must be in \[0, 1\], got 1\.1"),
        ({"num_boxes": 0}, r"num_boxes must be >= 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PICCutMix([5, 5], **arguments)
