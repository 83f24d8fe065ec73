from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dinomix_monai.networks import ProjectionHead


def at_each_cell(linear, x):
    """A linear map of the channels, written out."""
    return torch.einsum("oc,bc...->bo...", linear.weight, x) + linear.bias.view(-1, *[1] * (x.ndim - 2))


@pytest.mark.parametrize("size", [(3, 4, 5), (3, 4)], ids=["3D", "2D"])
def test_it_is_a_linear_map_at_each_cell(size):
    head, x = ProjectionHead(6, 8), torch.rand(2, 6, *size)
    assert head(x).shape == (2, 8, *size)
    torch.testing.assert_close(head(x), at_each_cell(head.layers, x))


@pytest.mark.parametrize("size", [(3, 4, 5), (3, 4)], ids=["3D", "2D"])
def test_with_a_hidden_layer_it_is_a_perceptron_at_each_cell(size):
    head, x = ProjectionHead(6, 8, hidden_channels=5), torch.rand(2, 6, *size)
    first, _, last = head.layers
    assert first.out_features == 5
    torch.testing.assert_close(head(x), at_each_cell(last, F.gelu(at_each_cell(first, x))))
