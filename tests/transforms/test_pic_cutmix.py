from __future__ import annotations

import io
import math
from collections import Counter

import numpy as np
import pytest
import torch
from monai.transforms import RandAffineGrid
from scipy.stats import binomtest, chisquare

from dinomix_monai.transforms import DIRECTIONS, PICCutMix, class_probabilities, imbalance

SHAPES = [(8, 8), (8, 8, 8)]
COUNTS = [10_000, 900, 100, 25, 9]
"""Of background and four classes."""


def full(value, shape=(4, 4, 4)):
    """One patch of one value, (1, 1, ...)."""
    return torch.full((1, 1, *shape), float(value))


def batch_of(values, shape=(4, 4, 4)):
    """Patches of one value each."""
    return torch.cat([full(value, shape) for value in values])


def one_voxel_mixer(counts=COUNTS, **kwargs):
    """Boxes of a single voxel, one for each mixed patch."""
    settings = {"num_boxes": 1, "box_fraction": (0.01, 0.01), "blind_share": 0.0, **kwargs}
    return PICCutMix(counts, **settings).set_random_state(seed=0)


def noise_batch(seed, shape=(6, 6, 6), labeled=(True, True, False, False)):
    """Labels of three classes, weights with zeros, and two images."""
    generator = torch.Generator().manual_seed(seed)
    size = (len(labeled), 1, *shape)
    label = torch.randint(0, 3, size, generator=generator)
    weight = (torch.rand(size, generator=generator) - 0.3).clamp(min=0)
    images = (torch.rand(size, generator=generator), torch.rand(len(labeled), 2, *shape, generator=generator))
    return (label, weight, *images), list(labeled)


def noise_mixer(**kwargs):
    return PICCutMix([100, 10, 3], **{"blind_share": 0.3, "bank_size": 2, **kwargs}).set_random_state(seed=0)


def equal(results, others):
    return all(torch.equal(a, b) for a, b in zip(results, others, strict=True))


def plain_formula(counts, progress, beta, curriculum, gamma):
    """The formulas of docs/method.md, number by number."""
    s = min(progress / curriculum, 1) ** gamma
    total = sum((1 / (n + 1)) ** beta for n in counts)
    return [(1 - s) * (1 / (n + 1)) ** beta / total + s / len(counts) for n in counts]


# The formulas.


@pytest.mark.parametrize("progress", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("beta", "curriculum", "gamma"), [(0.5, 1.0, 1.0), (1.0, 0.6, 2.0), (0.0, 0.3, 0.5)])
def test_class_probabilities_are_those_of_the_formula(progress, beta, curriculum, gamma):
    p = class_probabilities(COUNTS[1:], progress, beta, curriculum, gamma)
    assert p.tolist() == pytest.approx(plain_formula(COUNTS[1:], progress, beta, curriculum, gamma))
    assert p.sum() == pytest.approx(1)


def test_class_probabilities_at_the_start_are_those_counted_by_hand():
    # 1 / sqrt(n + 1): 1/10, 1/2 and 1, of 1.6.
    assert class_probabilities([99, 3, 0], 0.0).tolist() == pytest.approx([0.0625, 0.3125, 0.625])


@pytest.mark.parametrize("progress", [0.5, 1.0])
def test_class_probabilities_are_uniform_after_the_curriculum(progress):
    assert class_probabilities([99, 3, 0], progress, curriculum=0.5).tolist() == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("num_classes", range(1, 16))
@pytest.mark.parametrize("count", [0, 7, 1e9])
def test_imbalance_of_equal_counts_is_0(num_classes, count):
    assert imbalance([count] * num_classes) == pytest.approx(0, abs=1e-12)
    assert imbalance([count] * num_classes) >= 0


def test_imbalance_of_a_single_class_among_many_is_1():
    assert imbalance([0, 5, 0]) == pytest.approx(1)


def test_imbalance_is_one_minus_normalized_entropy():
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    for scale in (1, 1e6):
        assert imbalance([scale, 3 * scale]) == pytest.approx(1 - entropy / math.log(2))


def test_the_share_of_blind_boxes_follows_the_imbalance():
    entropy = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert PICCutMix([10, 1, 3]).blind_share == pytest.approx(entropy / math.log(2))
    assert PICCutMix([10, 3, 3]).blind_share == pytest.approx(1)
    assert PICCutMix([10, 3, 3], blind_share=0.2).blind_share == 0.2


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


def test_sides_are_drawn_from_their_range_for_each_axis():
    mixer = PICCutMix([1, 1], {"labeled_to_unlabeled": 1}, num_boxes=1, box_fraction=(0.25, 0.5), blind_share=1.0)
    label = batch_of([1, 0], (8, 8, 8))
    mixed, _ = mixer.set_random_state(0)(label, label, labeled=[True, False], num_mixed=200)
    sides = [tuple(len(axis.unique()) for axis in patch[0].nonzero().T) for patch in mixed]
    assert {side for box in sides for side in box} == {2, 3, 4}
    assert len(set(sides)) == 27


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


def test_a_patch_gets_as_many_boxes_as_are_asked_for():
    label = batch_of([1, 0])
    mixer = one_voxel_mixer([1, 1], directions={"labeled_to_unlabeled": 1}, num_boxes=3)
    mixed, _ = mixer(label, label, labeled=[True, False], num_mixed=50)
    assert Counter(mixed.sum((1, 2, 3, 4)).int().tolist()).keys() <= {1, 2, 3}  # some fall on one another
    assert mixed.sum((1, 2, 3, 4)).max() == 3


# Which class, which voxel.


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("labeled", [True, False], ids=["labeled", "unlabeled"])
def test_classes_are_drawn_as_often_as_the_formula_says(labeled, progress):
    mixer = one_voxel_mixer(beta=0.7, curriculum=0.8, gamma=2.0)
    mixer.add_donors([(full(c)[0], full(1)[0], torch.zeros(3)) for c in (1, 2, 3, 4)], [labeled] * 4)
    mixer.unlabeled_counts = np.array(COUNTS[:1] + COUNTS[:0:-1], dtype=float)
    mixer.progress = progress
    drawn = Counter(mixer._draw_class(labeled) for _ in range(4000))
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


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_classes_of_unlabeled_patches_are_pasted_by_their_own_counts(progress):
    sizes = [64, 16, 4, 1]
    label = torch.zeros(5, 1, 4, 4, 4)
    for index, size in enumerate(sizes):
        label[index].view(-1)[:size] = index + 1
    mixer = one_voxel_mixer(directions={"unlabeled_to_labeled": 1}, beta=1.0, count_decay=0.5)
    mixer.progress = progress
    mixed, _ = mixer(label, torch.ones_like(label), labeled=[False] * 4 + [True], num_mixed=3000)
    # Each patch counts a half, and halves those before it.
    averages = [size * 0.5 ** (4 - index) for index, size in enumerate(sizes)]
    expected = 3000 * np.array(plain_formula(averages, progress, 1.0, 1, 1))
    pasted = Counter(mixed.amax((1, 2, 3, 4)).int().tolist())
    assert chisquare([pasted[c] for c in (1, 2, 3, 4)], expected).pvalue > 0.001


@pytest.mark.parametrize("blind_share", [0.0, 1.0], ids=["around classes", "blind"])
@pytest.mark.parametrize("direction", ["labeled_to_labeled", "unlabeled_to_unlabeled"])
def test_no_box_is_cut_from_the_recipient_itself(direction, blind_share):
    # All are of one class and tell who they are by their image.
    label, image = batch_of([1, 1, 1]), batch_of([10, 20, 30])
    mixer = one_voxel_mixer(counts=[1, 1], directions={direction: 1}, blind_share=blind_share)
    labeled = [direction == "labeled_to_labeled"] * 3
    _, _, mixed = mixer(label, torch.ones_like(label), image, labeled=labeled, num_mixed=300)
    assert all(len(patch.unique()) == 2 for patch in mixed)


def test_where_the_recipient_is_the_only_donor_nothing_is_pasted():
    label, image = batch_of([1]), torch.rand(1, 1, 4, 4, 4)
    mixer = one_voxel_mixer(counts=[1, 1], directions={"labeled_to_labeled": 1})
    mixed = mixer(label, torch.ones_like(label), image, labeled=[True], num_mixed=20)
    assert equal(mixed, [part.expand(20, -1, -1, -1, -1) for part in (label, torch.ones_like(label), image)])
    assert len(mixer.bank.donors(True)) == 1


def test_a_class_without_donors_is_not_drawn():
    label = batch_of([1, 3, 0])
    mixer = one_voxel_mixer(directions={"labeled_to_unlabeled": 1})
    mixed, _ = mixer(label, torch.ones_like(label), labeled=[True, True, False], num_mixed=200)
    assert set(mixed.amax((1, 2, 3, 4)).int().tolist()) == {1, 3}


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
    patches = {"labeled": {10, 11}, "unlabeled": {20, 21, 22}}
    origin, destination = direction.split("_to_")
    mixed = mixed_values({direction: 1})
    assert {recipient for recipient, _ in mixed} == patches[destination]
    assert set().union(*(donors for _, donors in mixed)) == patches[origin]


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


def test_there_are_as_many_mixed_patches_as_unlabeled_ones():
    batch, _ = noise_batch(0)
    assert all(len(part) == 3 for part in noise_mixer()(*batch, labeled=[True, False, False, False]))


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


def test_donors_of_earlier_batches_are_used_until_the_bank_turns_over():
    mixer = one_voxel_mixer([1, 1, 1], directions={"labeled_to_unlabeled": 1}, bank_size=2)
    unlabeled = full(0)
    seen = []
    for value, class_index in ((10, 1), (11, 2), (12, 2), (13, 2)):
        image, label = torch.cat([full(value), unlabeled]), torch.cat([full(class_index), unlabeled])
        mixed = mixer(label, torch.ones_like(label), image, labeled=[True, False], num_mixed=60)[2]
        seen.append({int(value) for value in mixed.unique()} - {0})
    # Class 1 keeps its only donor; of class 2 the newest two stay.
    assert seen == [{10}, {10, 11}, {10, 11, 12}, {10, 12, 13}]


# Anatomical placement.


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


def test_anatomical_placement_needs_positions():
    message = r"positions must be given for placement='anatomical' \(PatchPositiond writes them\), got None\."
    with pytest.raises(ValueError, match=message):
        PICCutMix([1, 1], placement="anatomical")(full(1), full(1), labeled=[True])


def whole_patch_mixer(affine_grid):
    """The donor replaces the recipient altogether."""
    settings = {"num_boxes": 1, "box_fraction": (1.0, 1.0), "blind_share": 1.0, "affine_grid": affine_grid}
    return PICCutMix([1, 1], {"labeled_to_unlabeled": 1}, **settings).set_random_state(0)


@pytest.mark.parametrize("prob", [1.0, 0.0], ids=["donor", "recipient"])
def test_label_weight_and_images_are_deformed_alike(prob):
    quarter_turn = RandAffineGrid(rotate_range=[(0, 0), (0, 0), (math.pi / 2, math.pi / 2)])
    label, weight, first, second = torch.randint(1, 9, (4, 2, 1, 8, 8, 8)).float()
    batch = (label.clamp(max=1), weight, torch.cat([first, second], dim=1))
    before = [part.clone() for part in batch]
    mixer = whole_patch_mixer(quarter_turn)
    mixer.prob = prob
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


def test_donors_and_recipients_are_deformed_anew_for_each_patch():
    zoom = RandAffineGrid(scale_range=[(-0.5, 0.5)] * 3)
    label = torch.zeros(2, 1, 16, 16, 16)
    label[0, :, 4:12, 4:12, 4:12] = 1
    mixed = whole_patch_mixer(zoom)(label, torch.ones_like(label), labeled=[True, False], num_mixed=30)[0]
    sizes = mixed.flatten(1).sum(1)
    assert sizes.unique().numel() > 10
    # The grid that content is taken from grows by 0.5 to 1.5, so the content shrinks by as much.
    assert sizes.min() < 8**3 < sizes.max()


# Randomness and state.


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


def test_the_same_seed_gives_the_same_result_and_another_seed_another():
    batch, labeled = noise_batch(0)
    first, again, other = (noise_mixer().set_random_state(seed)(*batch, labeled=labeled) for seed in (5, 5, 6))
    assert equal(first, again)
    assert not equal(first, other)


def test_global_random_states_are_neither_used_nor_changed():
    batch, labeled = noise_batch(0)
    results = []
    for seed in (0, 1):
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
        results.append(noise_mixer()(*batch, labeled=labeled))
        assert before == (np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
    assert equal(*results)


def test_without_randomize_the_last_draw_is_repeated():
    batch, labeled = noise_batch(0)
    mixer = noise_mixer()
    first = mixer(*batch, labeled=labeled)
    counts, state = mixer.unlabeled_counts.copy(), mixer.R.get_state()[1].copy()
    for _ in range(2):
        assert equal(mixer(*batch, labeled=labeled, randomize=False), first)
    assert (counts == mixer.unlabeled_counts).all()
    assert (state == mixer.R.get_state()[1]).all()
    assert not equal(mixer(*batch, labeled=labeled), first)


def test_without_randomize_deformations_are_repeated_too():
    batch, labeled = noise_batch(0)
    mixer = noise_mixer(affine_grid=RandAffineGrid(rotate_range=(0, 0, 1), scale_range=(0.3, 0.3, 0.3)))
    first = mixer(*batch, labeled=labeled)
    assert equal(mixer(*batch, labeled=labeled, randomize=False), first)
    assert not equal(mixer(*batch, labeled=labeled), first)


@pytest.mark.parametrize("placement", ["same", "anatomical"])
@pytest.mark.parametrize("affine", [False, True], ids=["as they are", "deformed"])
def test_a_saved_state_goes_on_exactly_as_the_uninterrupted_run(placement, affine):
    def new(seed):
        deformation = RandAffineGrid(rotate_range=(0, 0, 1), scale_range=(0.3, 0.3, 0.3)) if affine else None
        return noise_mixer(placement=placement, bank_size=6, affine_grid=deformation).set_random_state(seed)

    def step(mixer, number):
        batch, labeled = noise_batch(number)
        mixer.progress = number / 6
        return mixer(*batch, labeled=labeled, positions=torch.randint(-2, 3, (4, 3)).float())

    # A bank larger than a batch, so that donors from before the interruption are used after it.
    mixer, resumed = new(0), new(99)
    torch.manual_seed(0)
    for number in range(3):
        step(mixer, number)
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    torch.manual_seed(1)
    expected = [step(mixer, number) for number in range(3, 6)]
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert resumed.progress == 2 / 6
    torch.manual_seed(1)
    assert all(equal(step(resumed, number), expected[number - 3]) for number in range(3, 6))
    assert resumed.unlabeled_counts.tolist() == mixer.unlabeled_counts.tolist()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
def test_labels_of_donors_are_kept_small_and_pasted_as_those_of_the_batch(dtype):
    batch, labeled = noise_batch(0)
    mixer = noise_mixer()
    mixed, *_ = mixer(batch[0].to(dtype), *batch[1:], labeled=labeled)
    expected, *_ = noise_mixer()(*batch, labeled=labeled)
    assert torch.equal(mixed, expected.to(dtype))
    assert mixed.dtype == dtype
    assert {donor[0].element_size() for donor in mixer.bank.donors(True)} == {2}


def test_labeled_counts_are_part_of_the_state():
    mixer, other = PICCutMix([8, 4, 2]), PICCutMix([1, 1, 1])
    other.load_state_dict(mixer.state_dict())
    assert other.probabilities(labeled=True).tolist() == mixer.probabilities(labeled=True).tolist()


def test_unlabeled_counts_follow_the_confident_voxels_as_a_moving_average():
    mixer = PICCutMix([100, 7, 7], count_decay=0.9)
    label, weight = torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4)
    label[:, :, 0, :3] = 1
    label[:, :, 1] = 2
    weight[:, :, 1, :2] = 0  # of class 2 two voxels of four count
    mixer(label, weight, labeled=[True, False])
    assert mixer.unlabeled_counts == pytest.approx(0.1 * np.array([9, 3, 2]))
    mixer(label[1:], weight[1:] * 0.2, labeled=[False])
    assert mixer.unlabeled_counts == pytest.approx(0.19 * np.array([9, 3, 2]))
    assert mixer.labeled_counts.tolist() == [100, 7, 7]


def test_a_class_never_pseudo_labeled_is_the_most_probable():
    mixer = PICCutMix([100, 7, 7])
    mixer(full(1), full(1), labeled=[False])
    p = mixer.probabilities(labeled=False)
    assert p.tolist() == pytest.approx(plain_formula([0.64, 0], 0, 0.5, 1, 1))
    assert p[1] > p[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_state_loaded_onto_a_gpu_goes_on_as_on_the_cpu():
    batch, labeled = noise_batch(0)
    positions = torch.tensor([[0.0, 0, 0], [1, 1, 1], [2, 0, 1], [0, 1, 0]])
    mixer, on_gpu = noise_mixer(placement="anatomical"), noise_mixer(placement="anatomical")
    mixer(*batch, labeled=labeled, positions=positions)
    file = io.BytesIO()
    torch.save(mixer.state_dict(), file)
    file.seek(0)
    on_gpu.load_state_dict(torch.load(file, map_location="cuda", weights_only=True))
    expected = mixer(*batch, labeled=labeled, positions=positions)
    mixed = on_gpu(*(part.cuda() for part in batch), labeled=labeled, positions=positions.cuda())
    assert all(part.is_cuda for part in mixed)
    assert equal([part.cpu() for part in mixed], expected)


# Errors.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labeled_counts": [5]}, r"labeled_counts must list >= 0 voxels for background and each class, got \[5\]"),
        ({"labeled_counts": [5, -1]}, r"labeled_counts must list >= 0 voxels .*, got \[5, -1\]"),
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
        ({"curriculum": 0}, r"curriculum and gamma must be > 0 and beta >= 0, got 0, 1\.0 and 0\.5"),
        ({"gamma": 0}, r"curriculum and gamma must be > 0 and beta >= 0, got 1\.0, 0 and 0\.5"),
        ({"beta": -1}, r"curriculum and gamma must be > 0 and beta >= 0, got 1\.0, 1\.0 and -1"),
        ({"bank_size": 0}, r"size must be >= 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PICCutMix(**{"labeled_counts": [5, 5], **arguments})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_patch_with_a_voxel_that_is_not_finite_is_no_donor(bad):
    mixer = one_voxel_mixer()
    image = full(0.5)[0]
    spoiled = image.clone()
    spoiled[0, 0, 0] = bad
    mixer.add_donors(
        [(full(c)[0], full(1)[0], torch.zeros(3), part) for c, part in ((1, spoiled), (2, image))], [True] * 2
    )
    assert mixer.bank.available(True).tolist() == [False, True, False, False]
