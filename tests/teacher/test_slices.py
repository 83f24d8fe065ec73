from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor
from torch.nn import functional as F

from dinomix_monai.teacher import FoundationTeacher, SliceTokens


class MeanTeacher:
    """The token of a square is its mean intensity in each channel, raised to a power."""

    stride, embed_dim = 4, 3

    def __init__(self, power=1):
        self.power, self.shapes = power, []

    def __call__(self, x):
        self.shapes.append(tuple(x.shape))
        return F.avg_pool2d(x, self.stride) ** self.power


def depth_ramp(depth):
    """Slice z has intensity z / 10."""
    return (torch.arange(depth) / 10).expand(1, 1, 4, 4, depth)


@pytest.mark.parametrize(
    ("depth", "d", "center"),
    [
        (9, 3, [1, 4, 7]),
        (8, 4, [0.5, 2.5, 4.5, 6.5]),
        (5, 2, [0.75, 3.25]),
        (4, 4, [0, 1, 2, 3]),
        (2, 4, [0, 0.25, 0.75, 1]),
        (1, 1, [0]),
    ],
    ids=["odd cells", "even cells", "fractional cells", "cells of a slice", "cells thinner than a slice", "one slice"],
)
def test_a_layer_is_represented_by_the_slice_at_its_center(depth, d, center):
    tokens = SliceTokens(MeanTeacher(), channels="repeat")(depth_ramp(depth), (1, 1, d))
    assert tokens.shape == (1, 3, 1, 1, d)
    for channel in range(3):
        torch.testing.assert_close(tokens[0, channel, 0, 0], torch.tensor(center) / 10)


def test_neighbors_are_one_voxel_below_and_above_and_repeated_at_the_ends():
    tokens = SliceTokens(MeanTeacher(), channels="neighbors")(depth_ramp(8), (1, 1, 4))
    expected = torch.tensor([[0, 1.5, 3.5, 5.5], [0.5, 2.5, 4.5, 6.5], [1.5, 3.5, 5.5, 7]]) / 10
    torch.testing.assert_close(tokens[0, :, 0, 0], expected)


def test_the_teacher_sees_each_channel_by_itself_and_their_tokens_are_averaged():
    volume = torch.rand(2, 3, 8, 12, 6)
    slice_tokens = SliceTokens(MeanTeacher(power=2), channels="repeat")
    tokens = slice_tokens(volume, (2, 3, 2), cells=[1, 0])
    alone = [slice_tokens(volume[:, channel : channel + 1], (2, 3, 2), cells=[1, 0]) for channel in range(3)]
    torch.testing.assert_close(tokens, torch.stack(alone).mean(0))


def test_a_token_is_the_mean_of_its_own_cell():
    volume = torch.rand(2, 1, 8, 12, 6)
    tokens = SliceTokens(MeanTeacher())(volume, (2, 3, 2))
    for row in range(2):
        for column in range(3):
            cell = volume[:, 0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            torch.testing.assert_close(tokens[:, 1, row, column], cell[..., [1, 4]].mean(dim=(1, 2)))


@pytest.mark.parametrize("voxels", [1, 2, 4, 6, 8])
@pytest.mark.parametrize("tokens_per_cell", [1, 2])
def test_a_resized_token_sits_at_the_center_of_its_cell(voxels, tokens_per_cell):
    h, w = 5, 6
    rows = ((torch.arange(h * voxels) + 0.5) / (h * voxels)).view(1, 1, -1, 1, 1).expand(1, 1, -1, w * voxels, 2)
    columns = ((torch.arange(w * voxels) + 0.5) / (w * voxels)).view(1, 1, 1, -1, 1).expand(1, 1, h * voxels, -1, 2)
    slice_tokens = SliceTokens(MeanTeacher(), tokens_per_cell=tokens_per_cell)
    inner = (0, 0, slice(1, -1), slice(1, -1), 0)  # at the rim a ramp ends, and bilinear sampling with it
    row = ((torch.arange(h) + 0.5) / h).view(-1, 1).expand(h, w)[1:-1, 1:-1]
    column = ((torch.arange(w) + 0.5) / w).expand(h, w)[1:-1, 1:-1]
    torch.testing.assert_close(slice_tokens(rows, (h, w, 1))[inner], row, atol=1e-5, rtol=0)
    torch.testing.assert_close(slice_tokens(columns, (h, w, 1))[inner], column, atol=1e-5, rtol=0)


def test_a_shrinking_slice_loses_no_voxel():
    volume = torch.zeros(1, 1, 24, 24, 1)
    volume[:, :, 1::3] = 1  # every third row, and the only ones that sampling without antialiasing would meet
    tokens = SliceTokens(MeanTeacher())(volume, (2, 2, 1))
    torch.testing.assert_close(tokens, torch.full_like(tokens, 1 / 3), atol=0.03, rtol=0)


@pytest.mark.parametrize("voxels", [2, 4, 8])
@pytest.mark.parametrize("axis", [2, 3, 4], ids=["rows", "columns", "depth"])
def test_a_shift_by_a_cell_shifts_the_tokens_by_one(voxels, axis):
    volume = torch.zeros(1, 1, 6 * voxels, 6 * voxels, 12)
    volume[:, :, 2 * voxels : 4 * voxels, 2 * voxels : 4 * voxels, 4:8] = torch.rand(2 * voxels, 2 * voxels, 4)
    slice_tokens = SliceTokens(MeanTeacher())
    shift = 2 if axis == 4 else voxels
    shifted = slice_tokens(volume.roll(shift, axis), (6, 6, 6))
    torch.testing.assert_close(shifted, slice_tokens(volume, (6, 6, 6)).roll(1, axis))


@pytest.mark.parametrize("size", [(8, 8), (12, 20), (32, 16)])
def test_in_plane_flips_and_transposes_commute(size):
    volume = torch.rand(2, 1, *size, 6)
    slice_tokens = SliceTokens(MeanTeacher())
    tokens = slice_tokens(volume, (2, 3, 4))
    torch.testing.assert_close(slice_tokens(volume.flip(2), (2, 3, 4)), tokens.flip(2))
    torch.testing.assert_close(slice_tokens(volume.flip(3), (2, 3, 4)), tokens.flip(3))
    torch.testing.assert_close(slice_tokens(volume.transpose(2, 3), (3, 2, 4)), tokens.transpose(2, 3))


@pytest.mark.parametrize(("depth", "d"), [(7, 3), (8, 4), (10, 3)])
def test_a_flip_in_depth_commutes_exactly_and_exchanges_the_neighbors(depth, d):
    volume = torch.rand(1, 1, 8, 8, depth)
    repeat, neighbors = SliceTokens(MeanTeacher(), channels="repeat"), SliceTokens(MeanTeacher())
    assert torch.equal(repeat(volume.flip(4), (2, 2, d)), repeat(volume, (2, 2, d)).flip(4))
    assert torch.equal(neighbors(volume.flip(4), (2, 2, d)), neighbors(volume, (2, 2, d)).flip(4).flip(1))


def test_the_tokens_of_a_cell_are_averaged_after_the_teacher():
    volume = torch.rand(1, 1, 8, 16, 1)
    teacher = MeanTeacher(power=2)
    tokens = SliceTokens(teacher, tokens_per_cell=2)(volume, (1, 2, 1))
    assert teacher.shapes == [(1, 3, 8, 16)]
    squares = volume[0, 0, :, :, 0].reshape(2, 4, 4, 4).mean(dim=(1, 3)) ** 2
    torch.testing.assert_close(tokens[0, 0, 0, :, 0], torch.stack([squares[:, :2].mean(), squares[:, 2:].mean()]))


def test_a_choice_of_layers_equals_the_choice_from_all():
    volume = torch.rand(2, 1, 8, 8, 10)
    slice_tokens = SliceTokens(MeanTeacher())
    tokens = slice_tokens(volume, (2, 2, 4))
    assert torch.equal(slice_tokens(volume, (2, 2, 4), cells=[3, 1]), tokens[..., [3, 1]])
    assert torch.equal(slice_tokens(volume, (2, 2, 4), cells=torch.tensor([0])), tokens[..., [0]])


def test_slices_go_to_the_teacher_in_batches_and_come_back_in_order():
    volume = torch.rand(2, 1, 8, 8, 6)
    teacher = MeanTeacher()
    tokens = SliceTokens(teacher, batch_size=4)(volume, (2, 2, 3))
    assert [shape[0] for shape in teacher.shapes] == [4, 2]
    assert torch.equal(tokens, SliceTokens(teacher)(volume, (2, 2, 3)))
    assert torch.equal(tokens[1:], SliceTokens(teacher)(volume[1:], (2, 2, 3)))


def test_intensities_are_clamped_before_slices_are_mixed():
    volume = torch.tensor([-9.0, 0.5, 9.0, torch.inf]).expand(1, 1, 4, 4, 4)
    tokens = SliceTokens(MeanTeacher(), channels="repeat")(volume, (1, 1, 2))
    torch.testing.assert_close(tokens[0, 0, 0, 0], torch.tensor([0.25, 1.0]))


def test_a_meta_tensor_in_half_precision_gives_a_plain_tensor_without_gradient():
    volume = MetaTensor(torch.rand(1, 1, 4, 4, 2, dtype=torch.float16)).requires_grad_()
    tokens = SliceTokens(MeanTeacher())(volume, (1, 1, 1))
    assert type(tokens) is torch.Tensor
    assert tokens.dtype == torch.float32
    assert not tokens.requires_grad


def test_without_resizing_the_tokens_are_those_of_the_slices_themselves():
    teacher = FoundationTeacher("vit_tiny_patch16_dinov3_qkvb", weights="none")
    slice_tokens = SliceTokens(teacher, channels="repeat").train()
    volume = torch.rand(1, 1, 32, 48, 3)
    tokens = slice_tokens(volume, (2, 3, 3))
    assert tokens.shape == (1, teacher.embed_dim, 2, 3, 3)
    images = volume[0].permute(3, 0, 1, 2).expand(-1, 3, -1, -1)
    torch.testing.assert_close(tokens[0].permute(3, 0, 1, 2), teacher(images), atol=1e-5, rtol=1e-5)
    assert not teacher.training


@pytest.mark.parametrize("teacher", [object(), F.relu], ids=["not callable", "without stride"])
def test_a_teacher_must_be_callable_and_say_its_stride(teacher):
    with pytest.raises(TypeError, match="teacher must be callable and have stride and embed_dim"):
        SliceTokens(teacher)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"channels": "rgb"}, "channels must be 'neighbors' or 'repeat', got 'rgb'"),
        ({"tokens_per_cell": 0}, "tokens_per_cell must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SliceTokens(MeanTeacher(), **arguments)


@pytest.mark.parametrize(
    ("shape", "grid", "cells", "message"),
    [
        ((1, 4, 4, 2), (1, 1, 1), None, r"volume must be \(B, C, H, W, D\), got \(1, 4, 4, 2\)"),
        ((1, 1, 4, 4, 2), (1, 1), None, r"grid must be three positive .* got \(1, 1\)"),
        ((1, 1, 4, 4, 2), (1, 0, 1), None, r"grid must be three positive .* got \(1, 0, 1\)"),
        ((1, 1, 4, 4, 2), (1, 1, 2), [2], r"cells must be indices from 0 to 1, .* got \[2\]"),
        ((1, 1, 4, 4, 2), (1, 1, 2), [-1], r"cells must be indices from 0 to 1, .* got \[-1\]"),
        ((1, 1, 4, 4, 2), (1, 1, 2), [], r"cells must be .* at least one, got \[\]"),
    ],
)
def test_wrong_inputs_are_refused(shape, grid, cells, message):
    with pytest.raises(ValueError, match=message):
        SliceTokens(MeanTeacher())(torch.rand(shape), grid, cells)
