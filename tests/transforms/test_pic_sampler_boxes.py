from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from monai.transforms import RandAffineGrid
from scipy.stats import binomtest, chisquare

from dinomix_monai.transforms import PICCutMix
from tests.transforms.pic_batches import (
    SHAPES,
    batch_of,
    equal,
    noise_batch,
    noise_mixer,
    one_voxel_mixer,
    whole_patch_mixer,
)


def test_sides_are_drawn_from_their_range_for_each_axis():
    mixer = PICCutMix([1, 1], {"labeled_to_unlabeled": 1}, num_boxes=1, box_fraction=(0.25, 0.5), blind_share=1.0)
    label = batch_of([1, 0], (8, 8, 8))
    mixed, _ = mixer.set_random_state(0)(label, label, labeled=[True, False], num_mixed=200)
    sides = [tuple(len(axis.unique()) for axis in patch[0].nonzero().T) for patch in mixed]
    assert {side for box in sides for side in box} == {2, 3, 4}
    assert len(set(sides)) == 27


def test_a_patch_gets_as_many_boxes_as_are_asked_for():
    label = batch_of([1, 0])
    mixer = one_voxel_mixer([1, 1], directions={"labeled_to_unlabeled": 1}, num_boxes=3)
    mixed, _ = mixer(label, label, labeled=[True, False], num_mixed=50)
    assert Counter(mixed.sum((1, 2, 3, 4)).int().tolist()).keys() <= {1, 2, 3}  # some fall on one another
    assert mixed.sum((1, 2, 3, 4)).max() == 3


def test_prob_0_gives_copies():
    batch, labeled = noise_batch(0)
    mixed = noise_mixer(prob=0.0, directions={"labeled_to_unlabeled": 1})(*batch, labeled=labeled)
    assert equal(mixed, [part[2:] for part in batch])
    assert not {part.data_ptr() for part in mixed} & {part.data_ptr() for part in batch}


def test_prob_is_the_share_of_patches_that_get_boxes():
    mixer = one_voxel_mixer([1, 1], directions={"labeled_to_unlabeled": 1}, prob=0.3)
    label = batch_of([1, 0])
    mixed, _ = mixer(label, label, labeled=[True, False], num_mixed=1000)
    assert binomtest(int(mixed.flatten(1).any(1).sum()), 1000, 0.3).pvalue > 0.001


def test_a_box_around_a_class_has_the_voxel_in_its_middle():
    label = torch.zeros(2, 1, 9, 9, 9)
    label[0, 0, 3, 4, 5] = 1
    image = batch_of([1, 0], (9, 9, 9))
    mixer = PICCutMix([1, 1], {"labeled_to_unlabeled": 1}, num_boxes=1, box_fraction=(1 / 3, 1 / 3), blind_share=0.0)
    mixed = mixer.set_random_state(0)(label, torch.ones_like(label), image, labeled=[True, False])[2]
    expected = torch.zeros(1, 1, 9, 9, 9)
    expected[:, :, 2:5, 3:6, 4:7] = 1
    assert torch.equal(mixed, expected)


@pytest.mark.parametrize("corner", [(0, 0, 0), (7, 7, 7), (0, 7, 3)])
def test_a_box_at_the_border_is_moved_and_not_cut(corner):
    label = torch.zeros(2, 1, 8, 8, 8)
    label[(0, 0, *corner)] = 1
    image = batch_of([1, 0], (8, 8, 8))
    mixer = PICCutMix([1, 1], {"labeled_to_unlabeled": 1}, num_boxes=1, box_fraction=(0.5, 0.5), blind_share=0.0)
    mixed_label, _, mixed = mixer.set_random_state(0)(label, image, image, labeled=[True, False])
    assert mixed.sum() == 4**3
    assert mixed_label[(0, 0, *corner)] == 1


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", ["labeled_to_unlabeled", "unlabeled_to_labeled"])
def test_a_box_around_a_class_is_never_around_a_voxel_of_weight_0(shape, direction):
    label, weight = batch_of([1, 1], shape), torch.zeros(2, 1, *shape)
    weight[(0, 0, *(2 for _ in shape))] = 1
    image = batch_of([1, 0], shape)
    labeled = [True, False] if direction.startswith("labeled") else [False, True]
    mixed = one_voxel_mixer([1, 1], directions={direction: 1})(label, weight, image, labeled=labeled, num_mixed=100)[2]
    assert torch.equal(mixed, image[:1].mul(weight[:1]).expand_as(mixed))


def test_a_box_around_a_class_is_around_any_of_its_voxels():
    label = torch.zeros(2, 1, 4, 4)
    organ = [(0, 1), (2, 2), (3, 0)]
    for place in organ:
        label[(0, 0, *place)] = 1
    image = batch_of([1, 0], (4, 4))
    mixer = one_voxel_mixer([1, 1], directions={"labeled_to_unlabeled": 1})
    mixed = mixer(label, torch.ones_like(label), image, labeled=[True, False], num_mixed=600)[2]
    pasted = mixed.sum((0, 1))
    assert chisquare([pasted[place] for place in organ]).pvalue > 0.001
    assert pasted.sum() == sum(pasted[place] for place in organ)


def test_a_blind_box_may_be_anywhere():
    label = torch.zeros(2, 1, 4, 4)
    label[0, 0, 0, 0] = 1
    image = batch_of([1, 0], (4, 4))
    mixer = one_voxel_mixer([1, 1], directions={"labeled_to_unlabeled": 1}, blind_share=1.0)
    mixed = mixer(label, torch.ones_like(label), image, labeled=[True, False], num_mixed=1600)[2]
    assert chisquare(mixed.sum((0, 1)).flatten()).pvalue > 0.001


# Placement.


def body_batch(positions, shape):
    """Patches whose images hold the body coordinate of each voxel, one axis in each channel."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))
    return torch.stack([grid + torch.tensor(p).view(-1, *(1 for _ in shape)) for p in positions])


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("blind_share", [0.0, 0.5, 1.0])
def test_anatomical_placement_keeps_the_place_in_the_body(shape, blind_share):
    positions = [[3.0, -2.0, 1.0][: len(shape)], [-1.0, 1.0, 4.0][: len(shape)]]
    body = body_batch(positions, shape)
    label = batch_of([1, 0], shape)
    arguments = {"labeled": [True, False], "positions": torch.tensor(positions), "num_mixed": 30}
    mixer = PICCutMix([1, 1], {"labeled_to_unlabeled": 1}, num_boxes=2, blind_share=blind_share, placement="anatomical")
    mixed_label, mixed_weight, mixed = mixer.set_random_state(0)(label, label, body, **arguments)
    # Coordinates are replaced by equal ones, so only the label shows the box.
    assert mixed_label.flatten(1).any(1).all()
    assert torch.equal(mixed_label, mixed_weight)
    assert torch.equal(mixed, body[1:].expand_as(mixed))
    same = PICCutMix([1, 1], {"labeled_to_unlabeled": 1}, blind_share=blind_share).set_random_state(0)
    assert not torch.equal(same(label, label, body, **arguments)[2], mixed)


def test_anatomical_placement_moves_an_organ_by_the_difference_of_positions():
    label = torch.zeros(2, 1, 8, 8, 8)
    label[0, 0, 4, 5, 1] = 1
    weight, image = torch.ones_like(label), batch_of([5, 0], (8, 8, 8))
    mixer = one_voxel_mixer([1, 1], directions={"labeled_to_unlabeled": 1}, placement="anatomical")
    positions = torch.tensor([[1.0, -2.0, 3.0], [-2.0, 1.0, 0.0]])
    mixed_label, _, mixed = mixer(label, weight, image, labeled=[True, False], positions=positions)
    assert mixed_label.nonzero().tolist() == [[0, 0, 7, 2, 4]]
    assert mixed.nonzero().tolist() == [[0, 0, 7, 2, 4]]


@pytest.mark.parametrize("shift", [(4, 0, 0), (0, -6, 0), (0, 0, 7), (100, 0, 0)])
def test_an_organ_that_would_lie_outside_is_not_drawn(shift):
    label = torch.zeros(2, 1, 8, 8, 8)
    label[0, 0, 4, 5, 1] = 1
    image = batch_of([5, 0], (8, 8, 8))
    mixer = one_voxel_mixer([1, 1], directions={"labeled_to_unlabeled": 1}, placement="anatomical")
    positions = torch.tensor([[*shift], [0, 0, 0]]).float()
    mixed = mixer(label, torch.ones_like(label), image, labeled=[True, False], positions=positions, num_mixed=20)
    assert equal(mixed, [part[[1] * 20] for part in (label, torch.ones_like(label), image)])


def test_of_an_organ_that_lies_outside_in_part_only_the_rest_is_drawn():
    label = torch.zeros(2, 1, 8, 8)
    label[0, 0, 4] = 1
    image = batch_of([5, 0], (8, 8))
    mixer = one_voxel_mixer([1, 1], directions={"labeled_to_unlabeled": 1}, placement="anatomical")
    positions = torch.tensor([[0.0, 6.0], [0.0, 0.0]])
    mixed = mixer(label, torch.ones_like(label), image, labeled=[True, False], positions=positions, num_mixed=50)[2]
    assert {tuple(place) for place in mixed.nonzero()[:, 2:].tolist()} == {(4, 6), (4, 7)}


# Deformation.


def test_donors_and_recipients_are_deformed_anew_for_each_patch():
    zoom = RandAffineGrid(scale_range=[(-0.5, 0.5)] * 3)
    label = torch.zeros(2, 1, 16, 16, 16)
    label[0, :, 4:12, 4:12, 4:12] = 1
    mixed = whole_patch_mixer(zoom)(label, torch.ones_like(label), labeled=[True, False], num_mixed=30)[0]
    sizes = mixed.flatten(1).sum(1)
    assert sizes.unique().numel() > 10
    # The grid that content is taken from grows by 0.5 to 1.5, so the content shrinks by as much.
    assert sizes.min() < 8**3 < sizes.max()


def test_a_recipe_keeps_no_more_of_a_donors_deformation_than_the_box_needs():
    mixer = noise_mixer(affine_grid=RandAffineGrid(rotate_range=(0, 0, 1)))
    batch, labeled = noise_batch(0)
    mixer(*batch, labeled=labeled)
    pastes = [paste for recipe in mixer.recipes for paste in recipe.pastes]
    assert pastes
    for paste in pastes:
        voxels = math.prod(side.stop - side.start for side in paste.source[1:])
        # Four coordinates of 4 bytes for each voxel.
        assert paste.grid.untyped_storage().nbytes() == 16 * voxels
