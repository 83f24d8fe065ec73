from __future__ import annotations

import pytest
import torch
from torch import nn

from dinomix_monai.baselines import StudentPair
from dinomix_monai.networks import VNet


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return StudentPair(VNet(n_filters=2, num_convs=(1, 1), out_channels=3))


def test_two_students_of_one_architecture_start_apart(pair):
    first, second = pair.first.state_dict(), pair.second.state_dict()
    assert {name: value.shape for name, value in first.items()} == {name: value.shape for name, value in second.items()}
    assert not torch.equal(first["stem.0.weight"], second["stem.0.weight"])
    # As another network of its kind would be drawn, and not a perturbation of the first.
    assert second["stem.0.weight"].std() == pytest.approx(float(first["stem.0.weight"].std()), rel=0.3)


def test_training_gives_both_and_evaluation_their_mean(pair):
    x = torch.rand(1, 1, 8, 8, 8)
    pair.eval()
    expected = pair.first(x), pair.second(x)
    torch.testing.assert_close(pair(x), torch.stack(expected).mean(0))
    pair.train()
    found = pair(x)
    assert len(found) == 2
    torch.testing.assert_close(found[0], pair.first(x))
    torch.testing.assert_close(found[1], pair.second(x))


def test_a_network_that_cannot_be_drawn_anew_is_refused():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

    with pytest.raises(ValueError, match=r"student must have modules with reset_parameters.* got Fixed"):
        StudentPair(Fixed())
