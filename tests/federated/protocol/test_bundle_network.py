from __future__ import annotations

import pytest
import torch

from dinomix_monai.federated.protocol import bundle_network, class_axes


def test_the_initial_weights_follow_from_the_seed_and_leave_the_random_state_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, other = bundle_network(3, seed=1).state_dict(), bundle_network(3, seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(one[name], other[name]) for name in one)
    first = next(iter(one))
    assert not torch.equal(one[first], bundle_network(3, seed=2).state_dict()[first])
    with pytest.raises(FileNotFoundError, match=r"A config must be one of the bundle .*, got .*nothing"):
        bundle_network(3, overlays=["nothing"])
    with pytest.raises(ValueError, match=r"--epoch must be a setting, .* Did you mean epochs"):
        bundle_network(3, settings={"epoch": 3})


def test_the_weights_of_the_classes_are_those_of_the_last_layer():
    assert class_axes(3) == {"head.weight": 1, "head.bias": 0}
    shapes = bundle_network(3).state_dict()
    assert (shapes["head.weight"].shape[1], shapes["head.bias"].shape[0]) == (3, 3)
