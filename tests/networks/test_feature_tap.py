from __future__ import annotations

import copy

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
    tap.take()
    assert torch.equal(network(x), plain(x))
    state, expected = network.state_dict(), plain.state_dict()
    assert list(state) == list(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    plain.load_state_dict(state, strict=True)


def test_features_are_the_outputs_of_the_modules_in_the_order_of_their_names(network):
    tap, x = FeatureTap(network, ["block", "first"]), image()
    out = network(x)
    block, first = tap.take()
    assert torch.equal(block, out)
    assert torch.equal(first, network.first(x))


def test_the_last_pass_counts(network):
    tap, x = FeatureTap(network, ["first"]), image()
    network(image())
    network(x)
    assert torch.equal(tap.take()[0], network.first(x))


def test_the_gradient_of_a_feature_reaches_the_network(network):
    tap = FeatureTap(network, ["first"])
    network(image())
    tap.take()[0].sum().backward()
    assert network.first.weight.grad.any()


def test_features_are_let_go_when_they_are_taken(network):
    tap = FeatureTap(network, ["first"])
    network(image())
    tap.take()
    with pytest.raises(RuntimeError, match=r"take\(\) must follow a forward pass in training mode, got none since"):
        tap.take()


def test_nothing_is_recorded_in_evaluation_mode(network):
    tap = FeatureTap(network, ["first", "block"])
    network.eval()(image())
    with pytest.raises(RuntimeError, match="must follow a forward pass in training mode"):
        tap.take()


def test_evaluation_does_not_replace_what_training_recorded(network):
    tap, x = FeatureTap(network, ["first"]), image()
    network.train()(x)
    network.eval()(image())
    assert torch.equal(tap.take()[0], network.first(x))


@pytest.mark.parametrize("make_copy", [copy.deepcopy, EMATeacher], ids=["copy", "EMA"])
def test_a_copy_of_the_network_does_not_feed_the_tap(network, make_copy):
    tap = FeatureTap(network, ["first"])
    other = make_copy(network)
    for module in other.modules():
        module.training = True  # an EMA refuses train()
    other(image())
    with pytest.raises(RuntimeError, match="got none since the last call"):
        tap.take()


def test_looking_gives_the_features_in_evaluation_mode(network):
    x = image()
    network.norm.running_mean += 3
    block, norm = FeatureTap(network, ["block", "norm"]).look(network, x)
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
    tap.look(network, image())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert network.training
    assert network.first.training
    assert not network.norm.training
    assert len(network.first._forward_hooks) == 1
    with pytest.raises(RuntimeError, match="got none since the last call"):
        tap.take()


def test_looking_leaves_no_trace_if_the_network_fails(network):
    tap = FeatureTap(network, ["first"])
    with pytest.raises(RuntimeError, match="channels"):
        tap.look(network, torch.rand(1, 5, 4, 4))
    assert network.training
    assert len(network.first._forward_hooks) == 1


@pytest.mark.parametrize("name", ["second", "", "block.1"])
def test_an_unknown_module_is_refused_with_the_names_there_are(network, name):
    message = rf"modules must name modules of Sequential \(first, norm, block, block\.0\), got '{name}'"
    with pytest.raises(ValueError, match=message):
        FeatureTap(network, ["first", name])
