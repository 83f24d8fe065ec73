from __future__ import annotations

import math
import random
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from monai.transforms import AffineGrid, RandAffineGrid

from dinomix_monai.transforms import MixRecipe, Paste, PICCutMix, apply_recipes
from tests.transforms.pic_batches import (
    SHAPES,
    batch_of,
    equal,
    next_numbers,
    noise_batch,
    noise_mixer,
    whole_patch_mixer,
)

EVERYTHING = slice(None)


def two_by_two(start, row=None):
    """A box of 2 x 2 voxels."""
    return (EVERYTHING, *(slice(side, side + 2) for side in (start, start if row is None else row)))


def numbered_donor():
    """Label, weight, position and image of a patch of 4 x 4 voxels, which the image numbers."""
    return torch.full((1, 4, 4), 3), torch.full((1, 4, 4), 0.5), torch.zeros(2), torch.arange(16.0).view(1, 4, 4)


def deforming_mixer(**kwargs):
    return noise_mixer(affine_grid=RandAffineGrid(rotate_range=(0, 0, 1), scale_range=(0.3, 0.3, 0.3)), **kwargs)


# By hand.


def test_a_box_is_copied_from_its_place_in_the_donor_to_its_place_in_the_recipient():
    paste = Paste(numbered_donor(), 3, center=(2, 1), source=two_by_two(2), target=two_by_two(1, 0))
    recipes = [MixRecipe("labeled_to_unlabeled", recipient=1, pastes=(paste,)), MixRecipe("labeled_to_labeled", 0)]
    batches = [torch.full((2, 1, 4, 4), 0), torch.ones(2, 1, 4, 4), -torch.ones(2, 1, 4, 4)]
    label, weight, image = apply_recipes(batches, recipes)
    assert image[0, 0].tolist() == [[-1, -1, -1, -1], [10, 11, -1, -1], [14, 15, -1, -1], [-1, -1, -1, -1]]
    assert label[0, 0].tolist() == [[0, 0, 0, 0], [3, 3, 0, 0], [3, 3, 0, 0], [0, 0, 0, 0]]
    assert weight[0, 0].tolist() == [[1, 1, 1, 1], [0.5, 0.5, 1, 1], [0.5, 0.5, 1, 1], [1, 1, 1, 1]]
    assert equal([part[1] for part in (label, weight, image)], [batch[0] for batch in batches])


def test_a_later_box_covers_an_earlier_one():
    donor = numbered_donor()
    pastes = tuple(Paste(donor, None, (0, 0), source, two_by_two(0)) for source in (two_by_two(0), two_by_two(2)))
    batches = [torch.zeros(1, 1, 4, 4)] * 3
    _, _, image = apply_recipes(batches, [MixRecipe("labeled_to_labeled", 0, pastes=pastes)])
    assert image[0, 0, :2, :2].tolist() == [[10, 11], [14, 15]]


def test_a_grid_deforms_the_donor_inside_of_the_box():
    half_turn = AffineGrid(rotate_params=[math.pi])((4, 4))[0]
    paste = Paste(numbered_donor(), None, (1, 1), two_by_two(0), two_by_two(1), half_turn[two_by_two(0)])
    _, _, image = apply_recipes([torch.zeros(1, 1, 4, 4)] * 3, [MixRecipe("labeled_to_labeled", 0, pastes=(paste,))])
    expected = torch.zeros(4, 4)
    expected[1:3, 1:3] = torch.tensor([[15.0, 14], [11, 10]])
    torch.testing.assert_close(image[0, 0], expected, rtol=0, atol=1e-4)


def test_a_grid_deforms_the_recipient_before_boxes_are_pasted():
    half_turn = AffineGrid(rotate_params=[math.pi])((4, 4))[0]
    paste = Paste(numbered_donor(), None, (0, 0), two_by_two(0), two_by_two(0))
    batch = torch.arange(16.0).view(1, 1, 4, 4)
    _, _, image = apply_recipes([batch] * 3, [MixRecipe("labeled_to_labeled", 0, half_turn, (paste,))])
    expected = torch.tensor([[0.0, 1, 13, 12], [4, 5, 9, 8], [7, 6, 5, 4], [3, 2, 1, 0]])
    torch.testing.assert_close(image[0, 0], expected, rtol=0, atol=1e-4)


def test_no_recipe_gives_no_patch():
    assert [part.shape for part in apply_recipes([torch.zeros(2, 1, 4, 4)] * 3, [])] == [(0, 1, 4, 4)] * 3


def test_a_recipe_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        MixRecipe("labeled_to_labeled", 0).recipient = 1


# Again and again.


@pytest.mark.parametrize("modes", [["bilinear", "nearest"], ["nearest", "bilinear"]], ids="-".join)
@pytest.mark.parametrize("mixer", [noise_mixer, deforming_mixer])
def test_replayed_recipes_give_the_same_bitwise(mixer, modes):
    mixer = mixer(num_boxes=3)
    calls = []
    # Later calls turn the bank over, and draw on.
    for seed in range(6):
        batch, labeled = noise_batch(seed)
        mixed = mixer(*batch, labeled=labeled, num_mixed=5, modes=modes)
        calls.append((batch, mixer.recipes, mixed))
    assert sum(len(recipe.pastes) for _, recipes, _ in calls for recipe in recipes) > 60
    for batch, recipes, mixed in calls:
        for _ in range(2):
            assert equal(apply_recipes(batch, recipes, modes), mixed)


@pytest.mark.parametrize("mixer", [noise_mixer, deforming_mixer])
def test_applying_draws_no_random_number(mixer):
    def states():
        return [
            random.getstate(),
            *(next_numbers(state) for state in (np.random, mixer.R, mixer.sampler.R)),
            torch.get_rng_state().tolist(),
        ]

    mixer = mixer()
    batch, labeled = noise_batch(0)
    mixer(*batch, labeled=labeled)
    before = states()
    apply_recipes(batch, mixer.recipes)
    assert states() == before


def test_applying_changes_neither_donors_nor_recipes():
    batch, labeled = noise_batch(0)
    mixer = deforming_mixer()
    mixer(*batch, labeled=labeled)

    def tensors():
        donors = [part for origin in (True, False) for donor in mixer.bank.donors(origin) for part in donor]
        return [*donors, *(recipe.grid for recipe in mixer.recipes)]

    before = [tensor.clone() for tensor in tensors()]
    for part in mixer(*batch, labeled=labeled, randomize=False):
        part.zero_()
    assert equal(tensors(), before)


# What a box is.


@pytest.mark.parametrize("shape", [*SHAPES, (8, 6, 4)])
@pytest.mark.parametrize("blind_share", [0.0, 1.0])
def test_label_weight_and_images_change_at_exactly_the_voxels_of_a_box(shape, blind_share):
    mixer = PICCutMix(
        [1, 1], {"labeled_to_unlabeled": 1}, num_boxes=1, box_fraction=(0.5, 0.5), blind_share=blind_share
    )
    label = batch_of([1, 0], shape)
    images = torch.cat([label * 3, label * 4], dim=1)
    mixed = mixer.set_random_state(0)(label, label * 0.5, images, labeled=[True, False], num_mixed=20)
    assert [part.shape for part in mixed] == [(20, 1, *shape), (20, 1, *shape), (20, 2, *shape)]
    box = mixed[0] == 1
    for m in range(20):
        sides = [len(axis.unique()) for axis in box[m, 0].nonzero().T]
        assert sides == [n // 2 for n in shape]
        assert box[m].sum() == math.prod(sides)  # no hole in it
    assert torch.equal(mixed[0], box.float())
    assert torch.equal(mixed[1], box * 0.5)
    assert torch.equal(mixed[2], torch.cat([box * 3.0, box * 4.0], dim=1))
    assert len({tuple(box[m].flatten().tolist()) for m in range(20)}) > 5  # not always the same place


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_pasted_comes_from_the_same_place_of_the_donor(shape):
    count = math.prod(shape)
    places = torch.arange(1, count + 1).reshape(1, 1, *shape)
    label, weight = batch_of([1, 0], shape), batch_of([1, 1], shape)
    image = torch.cat([places, -places])
    mixer = PICCutMix([1, 1], {"labeled_to_unlabeled": 1}).set_random_state(0)
    mixed_label, _, mixed_image = mixer(label, weight, image, labeled=[True, False], num_mixed=10)
    assert torch.equal(mixed_image, torch.where(mixed_label == 1, places, -places))


def test_the_inputs_are_left_unchanged():
    batch, labeled = noise_batch(0)
    before = [part.clone() for part in batch]
    mixed = noise_mixer()(*batch, labeled=labeled)
    assert equal(batch, before)
    for part in mixed:
        part.zero_()
    assert equal(batch, before)


@pytest.mark.parametrize("prob", [1.0, 0.0], ids=["donor", "recipient"])
def test_label_weight_and_images_are_deformed_alike(prob):
    quarter_turn = RandAffineGrid(rotate_range=[(0, 0), (0, 0), (math.pi / 2, math.pi / 2)])
    label, weight, first, second = torch.randint(1, 9, (4, 2, 1, 8, 8, 8)).float()
    batch = (label.clamp(max=1), weight, torch.cat([first, second], dim=1))
    before = [part.clone() for part in batch]
    mixer = whole_patch_mixer(quarter_turn)
    mixer.sampler.prob = prob
    for part, mixed in zip(before, mixer(*batch, labeled=[True, False])):
        # The donor is the first patch and the recipient the second.
        torch.testing.assert_close(mixed[0], part[0 if prob else 1].rot90(-1, (1, 2)), rtol=0, atol=1e-4)
    assert equal(before, batch)


def test_what_a_deformation_brings_in_from_beyond_the_patch_has_weight_0():
    shrink = RandAffineGrid(scale_range=[(1.0, 1.0)] * 3)
    label, weight, image = (batch_of(values, (8, 8, 8)) for values in ([1, 0], [1, 1], [5, 0]))
    modes = ["bilinear", "nearest"]
    _, weight, image, place = whole_patch_mixer(shrink)(label, weight, image, image, labeled=[True, False], modes=modes)
    assert weight.sum() == 4**3
    assert weight[0, 0, 2:6, 2:6, 2:6].all()
    assert (image == 5).all()
    assert torch.equal(place, 5 * weight)


# Errors.


@pytest.mark.parametrize("modes", [[], ["bilinear"], ["nearest"] * 3])
def test_modes_that_are_not_as_many_as_the_images_are_refused(modes):
    batch, _ = noise_batch(0)
    with pytest.raises(ValueError, match=r"modes must have one mode for each of 2 images, got \["):
        apply_recipes(batch, [], modes)


def test_a_donor_that_lacks_an_image_is_refused_and_one_that_has_more_is_not():
    paste = Paste(numbered_donor(), None, (0, 0), two_by_two(0), two_by_two(0))
    recipes = [MixRecipe("labeled_to_labeled", 0, pastes=(paste,))]
    batch = torch.zeros(1, 1, 4, 4)
    with pytest.raises(ValueError, match=r"Donors must have each of the 2 images that are mixed, got one with 1\."):
        apply_recipes([batch] * 4, recipes)
    assert apply_recipes([batch] * 2, recipes)[0].sum() == 4 * 3
