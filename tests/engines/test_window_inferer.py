from __future__ import annotations

import pytest
import torch
from monai.inferers import SlidingWindowInferer

from dinomix_monai.engines import WindowInferer

WINDOWS = {"roi_size": (8, 8, 8), "sw_batch_size": 3, "overlap": 0.5, "mode": "gaussian"}


class Spy(torch.nn.Module):
    """A convolution that remembers the precision it ran in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Conv3d(1, 3, 3, padding=1)
        self.dtypes: set[torch.dtype] = set()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result = self.layer(x)
        self.dtypes.add(result.dtype)
        return result


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@torch.no_grad()
def test_without_a_type_it_is_the_sliding_window_of_monai() -> None:
    image, network = torch.rand(1, 1, 20, 13, 7), Spy()
    assert torch.equal(WindowInferer(**WINDOWS)(image, network), SlidingWindowInferer(**WINDOWS)(image, network))
    assert network.dtypes == {torch.float32}


@pytest.mark.parametrize("device", DEVICES)
@torch.no_grad()
def test_the_network_runs_in_half_precision_and_windows_are_summed_in_single(device: str) -> None:
    image, network = torch.rand(1, 1, 20, 13, 7, device=device), Spy().to(device)
    found = WindowInferer(**WINDOWS, dtype=torch.bfloat16)(image, network)
    assert network.dtypes == {torch.bfloat16}
    assert found.dtype == torch.float32
    expected = SlidingWindowInferer(**WINDOWS)(image.cpu(), network.cpu())
    torch.testing.assert_close(found.cpu(), expected, atol=2e-2, rtol=0)
