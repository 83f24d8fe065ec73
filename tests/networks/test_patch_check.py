from __future__ import annotations

import pytest
import torch
from monai.networks.nets import BasicUNet
from torch import nn

from dinomix_monai.baselines import StudentPair
from dinomix_monai.networks import VNet, check_patch_size


@pytest.fixture
def network():
    return VNet(spatial_dims=3, in_channels=1, out_channels=2, n_filters=4, norm="instance")


@pytest.mark.parametrize("patch_size", [(32, 32, 16), (16, 16, 32), (64, 64, 64)])
def test_what_trains_is_taken(network, patch_size):
    check_patch_size(network, patch_size)
    network(torch.rand(1, 1, *patch_size))


def test_a_patch_of_which_one_voxel_is_left_is_refused_as_such(network):
    message = r"patch_size must be one that the network can be trained on, got \[16, 16, 16\]: its strides leave a fea"
    with pytest.raises(ValueError, match=message):
        check_patch_size(network, (16, 16, 16))
    with pytest.raises(ValueError, match="Expected more than 1 spatial element"):
        network(torch.rand(1, 1, 16, 16, 16))


def test_batch_normalization_needs_more_than_one_voxel_in_a_batch():
    network = VNet(spatial_dims=3, in_channels=1, out_channels=2, n_filters=4, norm="batch")
    check_patch_size(network, (16, 16, 16), batch_size=2)
    with pytest.raises(ValueError, match="its strides leave a feature map of one voxel"):
        check_patch_size(network, (16, 16, 16), batch_size=1)


@pytest.mark.parametrize(
    ("patch_size", "message"),
    [((30, 32, 32), "be one that the network can be trained on, got .* multiples"), ((32, 32), "have 3 numbers")],
)
def test_what_the_network_does_not_take_is_refused(network, patch_size, message):
    with pytest.raises(ValueError, match=f"patch_size must {message}"):
        check_patch_size(network, patch_size)


def test_any_network_will_do(network):
    check_patch_size(StudentPair(network), (32, 32, 32))
    check_patch_size(BasicUNet(spatial_dims=2, in_channels=3, out_channels=2, features=(4,) * 6), (64, 64), 1, 3)


def test_the_network_stays_as_it_is(network):
    norm = nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)).eval()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    check_patch_size(norm, (4, 4, 4), batch_size=2)
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert not norm.training
    assert next(norm.parameters()).device.type == "cpu"
