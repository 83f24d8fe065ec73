from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.losses import DiceCELoss, DiceLoss
from torch.nn import functional as F

from dinomix_monai.losses import VoxelWeightedDiceCELoss

SIZES = pytest.mark.parametrize("size", [(4, 5, 3), (6, 5)], ids=["3D", "2D"])


def sample(size, classes=4):
    """Logits and a label that has every class in every sample."""
    label = torch.randint(0, classes, (2, 1, *size))
    label.flatten(1)[:, :classes] = torch.arange(classes)
    return 2 * torch.randn(2, classes, *size), label


def dice_loss(logits, label, weight, smooth=1e-5):
    """The formula of soft Dice, class by class."""
    prob, losses = logits.softmax(dim=1), []
    for c in range(1, logits.shape[1]):
        truth = (label[:, 0] == c).to(prob)
        if (weight[:, 0] * truth).sum() > 0:
            overlap = (weight[:, 0] * prob[:, c] * truth).sum()
            size = (weight[:, 0] * prob[:, c]).sum() + (weight[:, 0] * truth).sum()
            losses.append(1 - (2 * overlap + smooth) / (size + smooth))
    return sum(losses) / len(losses)


def test_two_voxels_are_those_counted_by_hand():
    prob = torch.tensor([[0.25, 0.75], [0.75, 0.25]])  # (C, voxels)
    logits, label = prob.log().view(1, 2, 2, 1), torch.tensor([1, 0]).view(1, 1, 2, 1)
    # Overlap 0.75, sizes 1 and 1: Dice 0.75. Both voxels have their class at 0.75.
    loss = VoxelWeightedDiceCELoss(lambda_dice=2, lambda_ce=3, smooth=0)(logits, label)
    assert loss.item() == pytest.approx(2 * 0.25 + 3 * -math.log(0.75))


@SIZES
@pytest.mark.parametrize("class_weight", [None, [0.1, 1.0, 2.0, 0.5]], ids=["plain", "class weight"])
def test_cross_entropy_is_torchs(size, class_weight):
    logits, label = sample(size)
    expected = F.cross_entropy(logits, label[:, 0], class_weight and torch.tensor(class_weight))
    torch.testing.assert_close(VoxelWeightedDiceCELoss(class_weight, lambda_dice=0)(logits, label), expected)


@SIZES
def test_dice_is_the_formula_written_plainly(size):
    logits, label = sample(size)
    weight = torch.rand(label.shape)
    loss_function = VoxelWeightedDiceCELoss(lambda_ce=0)
    torch.testing.assert_close(loss_function(logits, label, weight), dice_loss(logits, label, weight))
    torch.testing.assert_close(loss_function(logits, label), dice_loss(logits, label, torch.ones(label.shape)))


@SIZES
def test_it_is_monais_loss_where_every_voxel_counts_and_every_class_is_there(size):
    logits, label = sample(size)
    oracle = DiceCELoss(
        to_onehot_y=True, softmax=True, batch=True, include_background=False, lambda_dice=0.7, lambda_ce=1.3
    )
    loss = VoxelWeightedDiceCELoss(lambda_dice=0.7, lambda_ce=1.3)(logits, label)
    torch.testing.assert_close(loss, oracle(logits, label))


def test_it_is_as_exact_as_monais_loss_on_a_class_of_millions_of_voxels():
    label = torch.ones(4, 1, 128, 128, 64, dtype=torch.long)
    label[:, :, :, :, :8] = 0
    # The class has a probability near 0.995 wherever it is.
    margin = 4.9 + 0.3 * torch.rand(label.shape)
    logits = torch.cat([torch.zeros_like(margin), torch.where(label == 1, margin, -margin)], dim=1)
    ours, oracle = (
        VoxelWeightedDiceCELoss(lambda_ce=0),
        DiceLoss(to_onehot_y=True, softmax=True, batch=True, include_background=False),
    )
    losses, gradients = [], []
    for loss_function in (ours, oracle, lambda x, y: dice_loss(x.double(), y, torch.ones_like(y, dtype=torch.double))):
        x = logits.clone().requires_grad_()
        loss = loss_function(x, label)
        loss.backward()
        losses.append(loss.item())
        gradients.append(x.grad)
    *found, exact = losses
    assert 0.003 < exact < 0.007
    assert found == pytest.approx([exact] * 2, abs=3e-7)
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-4, atol=0)


@pytest.mark.parametrize("class_weight", [None, [0.1, 1.0, 2.0, 0.5]], ids=["plain", "class weight"])
def test_a_whole_weight_is_that_many_voxels(class_weight):
    logits, label = sample((40, 1))
    weight = torch.arange(4).repeat(20).view(label.shape)  # 0 to 3 of each voxel
    times = weight[:, 0].flatten()
    many_logits = logits.movedim(1, 0).flatten(1).repeat_interleave(times, dim=1)[None, ..., None]
    many_labels = label.flatten().repeat_interleave(times)[None, None, :, None]
    loss_function = VoxelWeightedDiceCELoss(class_weight)
    torch.testing.assert_close(loss_function(logits, label, weight), loss_function(many_logits, many_labels))


def test_a_voxel_of_weight_0_has_no_influence():
    logits, label = sample((4, 4, 4))
    weight = torch.rand(label.shape) * (torch.rand(label.shape) > 0.5)
    outside = weight == 0
    other_logits = torch.where(outside, 5 * torch.randn(logits.shape), logits)
    other_label = torch.where(outside, (label + 1) % 4, label)
    gradients = []
    for x, y in ((logits, label), (other_logits, other_label)):
        x.requires_grad_()
        loss = VoxelWeightedDiceCELoss([0.1, 1, 2, 0.5])(x, y, weight)
        loss.backward()
        gradients.append((loss.detach(), x.grad))
    (loss, gradient), (other_loss, other_gradient) = gradients
    torch.testing.assert_close(other_loss, loss)
    torch.testing.assert_close(other_gradient, gradient)
    assert not gradient[outside.expand_as(gradient)].any()
    assert gradient[~outside.expand_as(gradient)].all()


@pytest.mark.parametrize("class_weight", [None, [0.1, 1.0, 2.0, 0.5]], ids=["plain", "class weight"])
def test_without_any_weight_the_loss_is_0_and_so_is_its_gradient(class_weight):
    logits, label = sample((4, 4, 4))
    loss = VoxelWeightedDiceCELoss(class_weight)(logits.requires_grad_(), label, torch.zeros(label.shape))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_dice_is_the_mean_over_the_classes_that_have_weight():
    logits, label = sample((4, 4, 4))
    weight = (label != 2).float()  # class 2 is in the label, but does not count
    label[label == 3] = 1  # class 3 is not there
    prob, truth = logits.softmax(dim=1)[:, 1:2], label == 1
    expected = 1 - (2 * prob[truth].sum() + 1e-5) / ((prob * weight).sum() + truth.sum() + 1e-5)
    torch.testing.assert_close(VoxelWeightedDiceCELoss(lambda_ce=0)(logits, label, weight), expected)


def test_dice_of_background_alone_is_0():
    logits, label = sample((4, 4, 4))
    assert VoxelWeightedDiceCELoss(lambda_ce=0)(logits, torch.zeros_like(label)).item() == 0


def test_a_sharp_right_answer_costs_nothing_and_a_sharp_wrong_one_much():
    _, label = sample((4, 4, 4))
    right = 100.0 * F.one_hot(label[:, 0], 4).movedim(-1, 1)
    loss_function = VoxelWeightedDiceCELoss()
    assert loss_function(right, label).item() == pytest.approx(0, abs=1e-5)
    assert loss_function(right.roll(1, dims=1), label).item() == pytest.approx(101, abs=1e-3)
    logits = right.roll(1, dims=1).requires_grad_()
    loss_function(logits, label).backward()
    assert logits.grad.isfinite().all()


def test_half_precision_and_float_labels_are_computed_in_single_precision():
    logits, label = sample((4, 4, 4))
    half = logits.half()
    loss = VoxelWeightedDiceCELoss()(half, label.float(), torch.ones(label.shape, dtype=torch.float16))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, VoxelWeightedDiceCELoss()(half.float(), label))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lambda_dice": -1}, "lambda_dice and lambda_ce must be >= 0 and not both 0, got -1 and 1.0"),
        ({"lambda_ce": -0.5}, "lambda_dice and lambda_ce must be .* got 1.0 and -0.5"),
        ({"lambda_dice": 0, "lambda_ce": 0}, "lambda_dice and lambda_ce must be .* got 0 and 0"),
        ({"class_weight": [1, -2]}, r"class_weight must be >= 0 for each class, got \[1, -2\]"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VoxelWeightedDiceCELoss(**arguments)


@pytest.mark.parametrize(
    ("target", "weight", "message"),
    [
        ((2, 4, 4, 4), None, r"target must have shape \(2, 1, 4, 4, 4\), got \(2, 4, 4, 4\)"),
        ((2, 3, 4, 4, 4), None, r"target must have shape \(2, 1, 4, 4, 4\), got \(2, 3, 4, 4, 4\)"),
        ((1, 1, 4, 4, 4), None, r"target must have shape .* got \(1, 1, 4, 4, 4\)"),
        ((2, 1, 4, 4, 4), (2, 1, 4, 4, 1), r"weight must have the shape of target \(2, 1, 4, 4, 4\), got .*4, 1\)"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(target, weight, message):
    with pytest.raises(ValueError, match=message):
        VoxelWeightedDiceCELoss()(
            torch.rand(2, 3, 4, 4, 4), torch.zeros(target), None if weight is None else torch.ones(weight)
        )


@pytest.mark.parametrize("count", [2, 5])
def test_class_weights_of_another_number_of_classes_are_refused(count):
    logits, label = sample((4, 4, 4))
    with pytest.raises(ValueError, match=f"class_weight must have a weight for each of the 4 channels .* got {count}"):
        VoxelWeightedDiceCELoss([1.0] * count)(logits, label)


POSSIBLE = np.concatenate([np.eye(4), [[1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0]]]).astype(bool)


def marginal_loss(logits, label, weight, class_weight, smooth=1e-5):
    """The formula voxel by voxel, with sums of probabilities."""
    prob = logits.softmax(1).movedim(1, -1).flatten(0, -2).double()
    values, weights = label.flatten().tolist(), weight.flatten().double()
    sets = [np.flatnonzero(POSSIBLE[value]).tolist() for value in values]
    counted = [
        w * (0 if len(classes) == 4 else class_weight[value if value < 4 else 0])
        for value, classes, w in zip(values, sets, weights)
    ]
    entropy = -sum(w * p[classes].sum().log() for w, p, classes in zip(counted, prob, sets)) / sum(counted)
    dice = []
    for c in range(1, 4):
        tells = [
            (v == c, w * p[c], w) for v, classes, p, w in zip(values, sets, prob, weights) if c not in classes or v == c
        ]
        present = sum(w for is_class, _, w in tells if is_class)
        if present > 0:
            overlap = sum(p for is_class, p, _ in tells if is_class)
            dice.append(1 - (2 * overlap + smooth) / (sum(p for _, p, _ in tells) + present + smooth))
    return entropy + sum(dice) / len(dice)


@SIZES
def test_labels_that_are_not_complete_are_learned_by_their_sets(size):
    logits, _ = sample(size)
    label = torch.randint(0, 7, (2, 1, *size))
    weight, class_weight = torch.rand(label.shape), [0.1, 1.0, 2.0, 0.5]
    loss_function = VoxelWeightedDiceCELoss(class_weight, possible=POSSIBLE)
    expected = marginal_loss(logits, label, weight, class_weight)
    torch.testing.assert_close(loss_function(logits, label, weight).double(), expected, atol=1e-5, rtol=1e-5)
    # A voxel that may have any class teaches nothing.
    free = logits.requires_grad_()
    loss_function(free, label).backward()
    assert not free.grad.movedim(1, -1)[label[:, 0] == 5].any()
    assert free.grad.movedim(1, -1)[label[:, 0] == 4].any()


@SIZES
def test_complete_labels_lose_what_they_lose_without_sets(size):
    logits, label = sample(size)
    weight = torch.rand(label.shape)
    for given in (None, weight):
        plain, marginal = (
            VoxelWeightedDiceCELoss(possible=possible)(logits, label, given) for possible in (None, POSSIBLE)
        )
        torch.testing.assert_close(marginal, plain)
    assert torch.equal(
        VoxelWeightedDiceCELoss(possible=np.eye(4, dtype=bool))(logits, label), VoxelWeightedDiceCELoss()(logits, label)
    )


def test_sets_stand_behind_the_classes():
    with pytest.raises(
        ValueError, match=r"possible must have a row for each class and then one for each set, got shape"
    ):
        VoxelWeightedDiceCELoss(possible=POSSIBLE[1:])
