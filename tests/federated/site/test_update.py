from __future__ import annotations

import torch
from torch import nn

from dinomix_monai.federated.site.update import make_update, normalization_names


def test_names_of_all_kinds_of_normalization_are_found():
    network = nn.Sequential(
        nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), nn.Sequential(nn.InstanceNorm3d(2, affine=True), nn.GroupNorm(1, 2))
    )
    assert normalization_names(network) == {
        *("1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"),
        *("2.0.weight", "2.0.bias", "2.1.weight", "2.1.bias"),
    }
    assert normalization_names(nn.LayerNorm(2)) == {"weight", "bias"}


def test_an_update_is_apart_from_the_network_that_goes_on_training():
    local = {"w": torch.ones(2), "n": torch.tensor(5)}
    update = make_update(local, local, "full", {"n"})
    local["w"].zero_()
    assert update.keys() == {"w"}
    assert update["w"].tolist() == [1, 1]


def test_counters_stay_whole_numbers_in_differences():
    received = {"w": torch.tensor([1.0]), "n": torch.tensor(5)}
    update = make_update({"w": torch.tensor([1.25]), "n": torch.tensor(7)}, received, "half_difference")
    assert (update["w"].item(), update["w"].dtype) == (0.25, torch.float16)
    assert (update["n"].item(), update["n"].dtype) == (2, torch.int64)
