"""A training step must not become dearer unnoticed: operations and memory are counted, not timed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest.mock import patch

import pytest
import torch
from monai.utils import set_determinism
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
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


class Readings(TorchDispatchMode):
    """Lists the operations whose result depends on values, each of which would wait for a GPU."""

    names = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "bincount")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = [leaf for leaf in tree_leaves(args[1:]) if _is_tensor(leaf) and leaf.dtype == torch.bool]
        if name in self.names or (name.strip("_").startswith("index") and masks):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


@pytest.fixture
def step(workflow: Callable) -> Callable[..., Callable[..., None]]:
    """Makes a function that takes the next training step of a config, with all of its parts at work."""

    def make(overlay: str, **settings: object) -> Callable[..., None]:
        overlays = () if overlay == "default" else (overlay,)
        built = workflow("train", *overlays, **{"distiller#interval": 1}, warm_up=0.0, **settings)
        built.initialize()
        trainer = built.parser.get_parsed_content("train#trainer")
        set_determinism(0)
        for name in ("train#dataloader", "train#unlabeled_dataloader", "mix"):
            built.parser.get_parsed_content(name).set_random_state(seed=0)
        trainer.unsupervised_weight, trainer.state.iteration = 1.0, 0
        batches: Iterator = iter(trainer.data_loader)

        def take(counter: AbstractContextManager | None = None) -> None:
            trainer.state.iteration += 1
            batch, unlabeled = next(batches), trainer.next_unlabeled()
            with counter or nullcontext(), patch.object(trainer, "next_unlabeled", return_value=unlabeled):
                trainer._iteration(trainer, batch)

        take()  # the first one makes what stays: states of the optimizer, donors
        return take

    return make


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


def test_of_a_step_one_number_is_read(step: Callable) -> None:
    # The norm of the gradient. Boxes around a class read where its voxels are, so all are blind here. PIC's counts and
    # the volumes of the token cache are copied to the CPU as a whole, which does not show where they are.
    take = step("default", **{"mix#blind_share": 1.0})
    readings, before = Readings(), []
    # Not what the optimizer reads: its own counters, which are on the CPU.
    hooks = [
        register_optimizer_step_pre_hook(lambda *_: before.extend(readings.found)),
        register_optimizer_step_post_hook(lambda *_: readings.found.__setitem__(slice(None), before)),
    ]
    take(readings)
    for hook in hooks:
        hook.remove()
    assert readings.found == ["_local_scalar_dense"]


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: bool(x.sum() > 0), "_local_scalar_dense"),
        (lambda x: x[x > 0], "index"),
        (lambda x: x.index_put_((x > 0,), torch.zeros(())), "index_put_"),
        (lambda x: x.nonzero(), "nonzero"),
        (lambda x: x.unique(), "_unique2"),
    ],
)
def test_what_is_read_is_found(read: Callable, name: str) -> None:
    x = torch.arange(4.0)
    with Readings() as readings:
        x[torch.tensor([1, 2])] + 1
        assert readings.found == []
        read(x)
    assert readings.found == [name]


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
