from __future__ import annotations

import math
import re

import pytest
import torch

from dinomix_monai.losses import FeatureDistillationLoss, semantic_rarity, semantic_uniqueness

WEIGHTINGS = pytest.mark.parametrize("weighting", ["plain", "uniqueness", "rarity"])


def features(*size, channels=8):
    return torch.randn(2, channels, *(size or (4, 4, 3)))


def plane(*vectors):
    """A slice of cells in one row, shape (1, C, 1, cells)."""
    return torch.tensor(vectors, dtype=torch.float32).t()[None, :, None]


@WEIGHTINGS
@pytest.mark.parametrize(("student", "expected"), [((3, 0), 0), ((0, 0.5), 2), ((-2, 0), 4)])
def test_the_same_orthogonal_and_opposite_directions_give_0_2_and_4(weighting, student, expected):
    loss = FeatureDistillationLoss(weighting)(plane(student, student), plane((1, 0), (7, 0)))
    assert loss.item() == pytest.approx(expected)


def test_it_is_twice_the_distance_of_cosines_from_1():
    student, teacher = features(), features()
    cosine = torch.cosine_similarity(student, teacher, dim=1)
    torch.testing.assert_close(FeatureDistillationLoss()(student, teacher), (2 - 2 * cosine).mean())


@WEIGHTINGS
def test_lengths_of_vectors_do_not_count(weighting):
    student, teacher = features(), features()
    loss_function = FeatureDistillationLoss(weighting)
    lengths = 0.1 + torch.rand(2, 1, 4, 4, 3)
    torch.testing.assert_close(loss_function(lengths * student, 5 * teacher), loss_function(student, teacher))


@WEIGHTINGS
def test_the_gradient_reaches_the_student_and_not_the_teacher(weighting):
    student, teacher = features().requires_grad_(), features().requires_grad_()
    FeatureDistillationLoss(weighting)(student, teacher).backward()
    assert student.grad.any()
    assert teacher.grad is None


def test_a_cell_unlike_the_others_weighs_most_by_hand():
    # Mean cosines 3/4 and 1/4, so 1/4 and 3/4 before the mean of 3/8 is divided out.
    slice_of_four = plane((2, 0), (1, 0), (1, 0), (0, 3))
    torch.testing.assert_close(semantic_uniqueness(slice_of_four), torch.tensor([[[2 / 3, 2 / 3, 2 / 3, 2]]]))


@pytest.mark.parametrize(("wrong", "expected"), [(0, 4 / 6), (3, 2)])
def test_an_error_costs_as_much_as_its_cell_is_unique(wrong, expected):
    teacher = plane((1, 0), (1, 0), (1, 0), (0, 1))
    student = teacher.clone()
    student[..., wrong] *= -1  # a distance of 4 in one cell of four
    assert FeatureDistillationLoss()(student, teacher).item() == pytest.approx(1)
    assert FeatureDistillationLoss("uniqueness")(student, teacher).item() == pytest.approx(expected)


def test_uniqueness_is_the_mean_over_all_pairs_of_a_slice():
    teacher = features(3, 5, 2)
    weight = semantic_uniqueness(teacher)
    for b in range(2):
        for z in range(2):
            cells = teacher[b, :, :, :, z].flatten(1).t()
            expected = 1 - torch.cosine_similarity(cells[:, None], cells[None], dim=2).mean(dim=1)
            torch.testing.assert_close(weight[b, :, :, z].flatten(), expected / expected.mean())


@pytest.mark.parametrize(
    ("size", "tolerance"),
    [((8, 6), 0.01), ((8, 6, 3), 0.01), ((64, 48), 0.1)],
    ids=["2D", "3D", "compared with some cells"],
)
def test_each_group_of_cells_alike_weighs_the_same_however_small(size, tolerance):
    groups = torch.zeros(2, *size, dtype=torch.long)
    half, third = size[0] // 2, size[1] // 3
    groups[:, :half], groups[:, half // 2 : half, -third:] = 1, 2
    tokens = torch.eye(5)[groups].movedim(-1, 1) * torch.rand(2, 1, *size).add(0.5)
    weight = semantic_rarity(tokens)
    assert weight.shape == groups.shape
    shares = torch.stack([(weight * (groups == group)).sum((1, 2)) / weight.sum((1, 2)) for group in range(3)])
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / 3), rtol=tolerance, atol=0)
    torch.testing.assert_close(weight.mean((1, 2)), torch.ones_like(weight.mean((1, 2))))


def test_rarity_by_hand():
    # Three cells of four are alike, the cosine of the fourth with them is 0.8.
    slice_of_four = plane((2, 0), (1, 0), (1, 0), (4, 3))
    near = math.exp(-0.2 / 0.5)
    weight = torch.tensor([4 / (3 + near)] * 3 + [4 / (1 + 3 * near)])
    torch.testing.assert_close(semantic_rarity(slice_of_four, temperature=0.5)[0, 0], weight / weight.mean())


def test_one_cell_among_many_has_no_boundless_weight():
    tokens = torch.zeros(1, 2, 40, 40)
    tokens[:, 0], tokens[:, :, 1, 1] = 1, torch.tensor([0.0, 1.0])
    weight = semantic_rarity(tokens, references=16)
    assert weight[0, 1, 1] / weight[0, 0, 0] == pytest.approx(16)


def test_the_loss_is_the_weighted_mean_of_distances():
    student, teacher = features(), features()
    weight = semantic_uniqueness(teacher)
    distance = 2 - 2 * torch.cosine_similarity(student, teacher, dim=1)
    expected = (weight * distance).sum() / weight.sum()
    torch.testing.assert_close(FeatureDistillationLoss("uniqueness")(student, teacher), expected)


@pytest.mark.parametrize("size", [(4, 6, 3), (4, 6)], ids=["3D", "2D"])
def test_uniqueness_has_mean_1_in_every_slice(size):
    mean = semantic_uniqueness(features(*size)).mean(dim=(1, 2))
    torch.testing.assert_close(mean, torch.ones_like(mean))


@pytest.mark.parametrize("channels", [1, 384])
@pytest.mark.parametrize("scale", [1, 0], ids=["alike", "empty"])
def test_a_slice_whose_cells_are_all_alike_has_weights_of_1(channels, scale):
    teacher = features(16, 16, 2, channels=channels)
    teacher[..., 0] = scale * torch.randn(2, channels, 1, 1)
    weight = semantic_uniqueness(teacher)
    torch.testing.assert_close(weight[..., 0], torch.ones(2, 16, 16))
    assert channels == 1 or not torch.allclose(weight[..., 1], torch.ones(2, 16, 16))


@WEIGHTINGS
@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.roll(1, 2),
        lambda x: x.roll(1, 3),
        lambda x: x.roll(1, 4),
        lambda x: x.flip(2),
        lambda x: x.flip(3),
        lambda x: x.flip(4),
        lambda x: x.transpose(2, 3),
    ],
    ids=["rows shifted", "columns shifted", "slices shifted", "rows", "columns", "slices", "transposed"],
)
def test_a_target_that_is_shifted_flipped_or_transposed_raises_the_loss(weighting, move):
    student = features()
    loss_function = FeatureDistillationLoss(weighting)
    assert loss_function(student, student).item() == pytest.approx(0, abs=1e-6)
    assert loss_function(student, move(student)) > 0.5


@WEIGHTINGS
def test_masked_cells_are_as_if_they_were_not_there(weighting):
    student, teacher = features(4, 4, 2), features(4, 4, 2)
    mask = torch.zeros(2, 4, 4, 2, dtype=torch.bool)
    mask[:, :2] = True
    loss_function = FeatureDistillationLoss(weighting)
    without = loss_function(student[:, :, :2], teacher[:, :, :2])
    torch.testing.assert_close(loss_function(student, teacher, mask), without)
    assert not loss_function.weights(teacher, mask)[~mask].any()
    assert loss_function(student, teacher, torch.zeros_like(mask)) == 0


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=re.escape("shape (2, 4, 4, 3), got (2, 8, 4, 4, 3)")):
        FeatureDistillationLoss()(features(), features(), features() > 0)


def test_half_precision_is_computed_in_single_precision():
    student, teacher = features().half(), features().half()
    loss = FeatureDistillationLoss("uniqueness")(student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, FeatureDistillationLoss("uniqueness")(student.float(), teacher.float()))


def test_an_unknown_weighting_is_refused():
    with pytest.raises(ValueError, match="weighting must be one of plain, uniqueness, rarity, got 'rare'"):
        FeatureDistillationLoss("rare")


@pytest.mark.parametrize("shape", [(2, 8, 4, 4, 1), (2, 1, 4, 4, 3), (1, 8, 4, 4, 3), (2, 8, 4, 4)])
def test_features_of_different_shapes_are_refused(shape):
    message = f"student_features must have the shape of teacher_features (2, 8, 4, 4, 3), got {shape}."
    with pytest.raises(ValueError, match=re.escape(message)):
        FeatureDistillationLoss()(torch.rand(shape), features())
