from __future__ import annotations

import pytest
import torch
from monai.networks import convert_to_torchscript
from torch import nn

from dinomix_monai.networks import VNet

TOY = {"n_filters": 2, "num_convs": (1, 2, 1)}
SHAPES = [
    ({}, (8, 8, 8)),
    ({"in_channels": 3}, (4, 8, 12)),
    ({"stem_stride": 2}, (8, 16, 8)),
    ({"stem_stride": (1, 1, 2)}, (4, 8, 16)),
    ({"strides": [(2, 2, 1), 2]}, (8, 4, 6)),
    ({"strides": [2, 3], "stem_stride": (2, 2, 1)}, (12, 12, 6)),
    ({"spatial_dims": 2}, (8, 12)),
    ({"spatial_dims": 2, "stem_stride": (2, 4), "strides": [(1, 2), 2]}, (4, 16)),
]
IDS = ["plain", "channels", "stem", "flat stem", "flat stride", "stride 3", "2D", "2D with strides"]


def image(size, in_channels=1, **_):
    return torch.rand(2, in_channels, *size)


def grids(network, x):
    """Sizes of what every convolution gives."""
    sizes = {}
    for name, module in network.named_modules():
        if isinstance(module, (nn.Conv3d, nn.ConvTranspose3d)):
            module.register_forward_hook(lambda _, __, out, name=name: sizes.update({name: tuple(out.shape[2:])}))
    network.eval()(x)
    return sizes


@pytest.mark.parametrize(("n_filters", "parameters"), [(16, 9_449_070), (32, 37_778_126)])
def test_parameters_are_those_that_the_literature_reports(n_filters, parameters):
    with torch.device("meta"):
        network = VNet(in_channels=1, out_channels=14, n_filters=n_filters)
    assert sum(p.numel() for p in network.parameters()) == parameters  # 9.45 M and 37.8 M


@pytest.mark.parametrize(("arguments", "size"), SHAPES, ids=IDS)
def test_logits_have_the_size_of_the_image(arguments, size):
    network = VNet(out_channels=4, **TOY, **arguments)
    assert network(image(size, **arguments)).shape == (2, 4, *size)


def test_strides_act_between_their_levels_and_along_their_axes():
    network = VNet(strides=[(2, 1, 1), (1, 2, 2)], stem_stride=(1, 1, 2), **TOY)
    sizes = grids(network, torch.rand(1, 1, 8, 8, 8))
    assert sizes["stem.0"] == sizes["encoder.0.convs.0"] == sizes["up.0.0"] == (8, 8, 4)
    assert sizes["down.0.0"] == sizes["encoder.1.convs.0"] == sizes["up.1.0"] == (4, 8, 4)
    assert sizes["down.1.0"] == sizes["encoder.2.convs.0"] == (4, 4, 2)


def test_no_convolution_runs_at_full_resolution_behind_a_stem_stride():
    sizes = grids(VNet(stem_stride=2, **TOY), torch.rand(1, 1, 16, 16, 16))
    assert sizes.pop("head") == (16, 16, 16)
    assert max(sizes.values()) == (8, 8, 8)


def test_it_computes_the_levels_as_written_plainly():
    network = VNet(**TOY).eval()
    x = torch.rand(1, 1, 8, 8, 8)
    first = network.encoder[0](network.stem(x))
    second = network.encoder[1](network.down[0](first))
    lowest = network.encoder[2](network.down[1](second))
    up = network.decoder["1"](network.up["1"](lowest) + second)
    up = network.decoder["0"](network.up["0"](up) + first)
    assert torch.equal(network(x), network.head(up))


def test_a_state_dict_is_loaded_strictly_and_restores_the_network():
    network, other = VNet(**TOY), VNet(**TOY)
    network(torch.rand(2, 1, 8, 8, 8))  # running statistics away from their start
    other.load_state_dict(network.state_dict(), strict=True)
    x = torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(other.eval()(x), network.eval()(x))


def test_the_names_of_weights_count_levels_from_the_top():
    shapes = {name: tuple(value.shape[:2]) for name, value in VNet(**TOY).state_dict().items() if value.ndim == 5}
    assert shapes == {
        "stem.0.weight": (2, 1),
        "encoder.1.convs.0.weight": (4, 4),
        "encoder.1.convs.3.weight": (4, 4),
        "encoder.2.convs.0.weight": (8, 8),
        "down.0.0.weight": (4, 2),
        "down.1.0.weight": (8, 4),
        "up.0.0.weight": (4, 2),  # a transposed convolution names its inputs first
        "up.1.0.weight": (8, 4),
        "decoder.0.convs.0.weight": (2, 2),
        "decoder.1.convs.0.weight": (4, 4),
        "decoder.1.convs.3.weight": (4, 4),
        "head.weight": (2, 2),
    }


@pytest.mark.parametrize("residual", [True, False])
def test_residual_adds_the_input_of_a_level(residual):
    network = VNet(residual=residual, **TOY)
    for stage, channels in ((network.encoder[1], 4), (network.decoder["0"], 2)):
        x = torch.rand(1, channels, 4, 4, 4)
        for parameter in stage.parameters():
            nn.init.zeros_(parameter)  # the convolutions give 0
        assert torch.equal(stage(x), x if residual else torch.zeros_like(x))


def test_dropout_drops_whole_channels_at_the_lowest_level_and_before_the_logits():
    torch.manual_seed(0)
    network = VNet(n_filters=8, num_convs=(1, 1), dropout=0.25)
    passes = []
    network.dropout.register_forward_hook(lambda _, inputs, out: passes.append((inputs[0], out)))
    network(torch.rand(2, 1, 8, 8, 8))
    assert [before.shape[1] for before, _ in passes] == [16, 8]
    for before, after in passes:
        kept = after.flatten(2).any(dim=2)
        assert 0 < kept.sum() < kept.numel()
        torch.testing.assert_close(after, before / 0.75 * kept[..., None, None, None])


def test_dropout_does_nothing_in_evaluation():
    network, plain = VNet(dropout=0.5, **TOY), VNet(**TOY)
    plain.load_state_dict(network.state_dict(), strict=True)
    x = torch.rand(1, 1, 8, 8, 8)
    assert torch.equal(network.eval()(x), plain.eval()(x))


def test_the_gradient_reaches_every_parameter():
    # In evaluation mode, because batch statistics would cancel the biases; leaky, because a ReLU may be dead.
    network = VNet(act=("leakyrelu", {"negative_slope": 0.1}), **TOY).eval()
    network(torch.rand(1, 1, 8, 8, 8)).square().sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_norm_and_act_are_named_as_in_monai():
    network = VNet(norm=("group", {"num_groups": 2}), act="prelu", **TOY)
    kinds = {type(module) for module in network.modules()}
    assert {nn.GroupNorm, nn.PReLU} <= kinds
    assert not {nn.BatchNorm3d, nn.ReLU} & kinds


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("use_trace", [False, True], ids=["script", "trace"])
@pytest.mark.parametrize("index", [0, 5, 7], ids=[IDS[index] for index in (0, 5, 7)])
def test_torchscript_computes_the_same_for_any_size(index, use_trace, tmp_path):
    arguments, size = SHAPES[index]
    network = VNet(residual=True, dropout=0.5, **TOY, **arguments)
    x = torch.rand(1, 1, *size)
    convert_to_torchscript(network, tmp_path / "model.ts", inputs=[x], use_trace=use_trace)
    exported = torch.jit.load(tmp_path / "model.ts")
    other = image([2 * side for side in size])
    torch.testing.assert_close(exported(other), network.eval()(other))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_convs": (3,)}, r"num_convs must list at least 2 levels of at least 1 convolution, got \(3,\)"),
        ({"num_convs": (1, 0, 1)}, r"num_convs must list .* got \(1, 0, 1\)"),
        ({"num_convs": ()}, r"num_convs must list .* got \(\)"),
        ({"num_convs": (1, 2, 1), "strides": [2]}, "strides must have 2 entries for 3 levels, got 1"),
        ({"num_convs": (1, 1), "strides": [(2, 2)]}, "must have length 3, got 2"),
        ({"stem_stride": (2, 2)}, "must have length 3, got 2"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        VNet(**arguments)


def test_a_side_that_the_strides_do_not_divide_is_refused():
    network = VNet(in_channels=1, out_channels=2, n_filters=4, num_convs=(1, 1), strides=[(2, 2, 1)], stem_stride=2)
    assert network(torch.rand(1, 1, 8, 12, 6)).shape == (1, 2, 8, 12, 6)
    with pytest.raises(ValueError, match=r"sides of x must be multiples of \[4, 4, 2\], got \[8, 10, 6\]"):
        network(torch.rand(1, 1, 8, 10, 6))
