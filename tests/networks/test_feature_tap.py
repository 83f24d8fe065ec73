from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from dinomix_monai.networks import EMATeacher, FeatureTap


@pytest.fixture
def network():
    """Two convolutions with a batch normalization between them; not in place, so that every output can be compared."""
    layers = {"first": nn.Conv2d(1, 3, 1), "norm": nn.BatchNorm2d(3), "block": nn.Sequential(nn.Conv2d(3, 2, 2, 2))}
    network = nn.Sequential()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network


def image():
    return torch.rand(2, 1, 4, 4)


def test_the_network_keeps_its_state_dict_and_its_outputs(network):
    plain, x = copy.deepcopy(network), image()
    tap = FeatureTap(network, ["first", "block.0"])
    assert torch.equal(network(x), plain(x))
    assert torch.equal(tap(x)[0], plain(x))
    state, expected = network.state_dict(), plain.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    plain.load_state_dict(state, strict=True)


def test_features_are_the_outputs_of_the_modules_in_the_order_of_their_names(network):
    x = image()
    out, (block, first) = FeatureTap(network, ["block", "first"])(x)
    assert torch.equal(block, out)
    assert torch.equal(first, network.first(x))


def test_they_are_those_of_that_pass(network):
    tap, x, other = FeatureTap(network, ["first"]), image(), image()
    (first,), (second,) = tap(x)[1], tap(other)[1]
    network(image())
    assert torch.equal(first, network.first(x))
    assert torch.equal(second, network.first(other))


@pytest.mark.parametrize("mode", [True, False])
def test_they_come_in_the_mode_of_the_network(network, mode):
    x = image()
    network.norm.running_mean += 3
    _, (norm,) = FeatureTap(network.train(mode), ["norm"])(x)
    after = network.norm.running_mean.clone()
    network.norm.running_mean.fill_(3)
    torch.testing.assert_close(norm, network.norm(network.first(x)))
    torch.testing.assert_close(network.norm.running_mean, after)


def test_the_gradient_of_a_feature_reaches_the_network(network):
    FeatureTap(network, ["first"])(image())[1][0].sum().backward()
    assert network.first.weight.grad.any()


def test_no_other_pass_is_collected_and_nothing_is_kept(network):
    references = []
    network.first.register_forward_hook(lambda _, __, output: references.append(weakref.ref(output)))
    tap = FeatureTap(network, ["first"])
    with torch.no_grad():
        network(image())
        tap(image())
    gc.collect()
    assert [reference() for reference in references] == [None, None]


def test_nothing_is_kept_if_the_network_fails(network):
    tap, x = FeatureTap(network, ["first"]), image()
    with pytest.raises(RuntimeError, match="channels"):
        tap(torch.rand(1, 5, 4, 4))
    assert torch.equal(tap(x)[1][0], network.first(x))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, EMATeacher], ids=["copy", "EMA"])
def test_a_copy_of_the_network_does_not_feed_the_tap(network, make_copy):
    tap, x = FeatureTap(network, ["first"]), image()
    other = make_copy(network)
    # In the middle of a pass that is collected.
    network.block.register_forward_pre_hook(lambda _, __: (other(image()), None)[1])
    assert torch.equal(tap(x)[1][0], network.first(x))


def test_looking_gives_the_features_in_evaluation_mode(network):
    x = image()
    network.norm.running_mean += 3
    block, norm = FeatureTap(network, ["block", "norm"]).features_of(network, x)
    network.eval()
    with torch.no_grad():
        expected = network.norm(network.first(x))
        torch.testing.assert_close(norm, expected)
        torch.testing.assert_close(block, network.block(expected))
    assert not block.requires_grad


def test_looking_leaves_no_trace(network):
    tap = FeatureTap(network, ["first"])
    network.norm.eval()  # frozen on purpose
    state = copy.deepcopy(network.state_dict())
    tap.features_of(network, image())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert network.training
    assert network.first.training
    assert not network.norm.training
    assert len(network.first._forward_hooks) == 1


def test_looking_leaves_no_trace_if_the_network_fails(network):
    tap = FeatureTap(network, ["first"])
    with pytest.raises(RuntimeError, match="channels"):
        tap.features_of(network, torch.rand(1, 5, 4, 4))
    assert network.training
    assert len(network.first._forward_hooks) == 1


@pytest.mark.parametrize("name", ["second", "", "block.1"])
def test_an_unknown_module_is_refused_with_the_names_there_are(network, name):
    message = rf"modules must name modules of Sequential \(first, norm, block, block\.0\), got '{name}'"
    with pytest.raises(ValueError, match=message):
        FeatureTap(network, ["first", name])
