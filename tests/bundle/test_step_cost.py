"""A training step must not become dearer unnoticed: operations and memory are counted, not timed."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# Of a step with 2 labeled and 1 unlabeled patches of 32 x 32 x 16 voxels and the bundle's network with 4 filters. Who
# makes a step cheaper lowers these, who makes it dearer says in the commit what for.
MFLOP = {"default": 139.0, "ablation/pic": 130.3}
PEAK_MB = {"default": 17.9, "ablation/pic": 16.3}


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of all storages that operations make while it is active; ``peak`` is the most at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._seen: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A view or a result in place has the storage of an argument.
        old = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if _is_tensor(leaf)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if _is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in old:
                self._add(leaf.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self._free, storage.nbytes())

    def _free(self, size: int) -> None:
        self.held -= size


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


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
