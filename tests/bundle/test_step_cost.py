"""A training step must not become dearer unnoticed: operations and memory are counted, not timed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.peak_memory import PeakMemory

# Of a step with 2 labeled and 1 unlabeled patches of 32 x 32 x 16 voxels and the bundle's network with 4 filters. Who
# makes a step cheaper lowers these, who makes it dearer says in the commit what for.
MFLOP = {"default": 139.0, "ablation/pic": 130.3}
PEAK_MB = {"default": 17.9, "ablation/pic": 16.3}


@pytest.mark.parametrize("overlay", MFLOP)
def test_a_step_takes_no_more_operations_and_memory_than_it_did(step: Callable, overlay: str) -> None:
    take = step(overlay)
    with FlopCounterMode(display=False) as flop:
        take()
    with PeakMemory() as memory:
        take()
    found = flop.get_total_flops() / 1e6, memory.peak / 1e6
    for value, recorded in zip(found, (MFLOP[overlay], PEAK_MB[overlay])):
        assert 0.9 * recorded < value < 1.1 * recorded


def test_memory_is_counted_as_by_hand() -> None:
    with PeakMemory() as memory:
        a = torch.zeros(1000)
        b = a + 1  # 8000 bytes
        del a
        c = b[10:].add_(1)  # no new storage
        torch.zeros(500)  # 6000 bytes, gone at once
        del b, c
        torch.zeros(100)
    assert memory.peak == 8000
    assert memory.held == 0


def test_memory_that_waits_for_the_backward_pass_is_counted() -> None:
    x = torch.rand(1000, requires_grad=True)
    with PeakMemory() as memory:
        y = x.exp().exp()
        assert memory.held == 8000
        y.sum().backward()
    assert memory.peak > 8000
