"""Random draws that follow from seed and epoch alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events

__all__ = ["EpochSeedHandler"]


class EpochSeedHandler:
    """
    Seeds torch and the given transforms anew at the start of each epoch, from the seed of the run and the epoch.

    An epoch then draws the same whether the run came to it in one go or was resumed before it.

    Args:
        seed: seed of the run.
        randomizables: transforms and others with ``set_random_state``.
    """

    def __init__(self, seed: int, randomizables: Sequence[Any] = ()) -> None:
        self.seed = seed
        self.randomizables = [item for item in randomizables if item is not None]

    def attach(self, engine: Engine) -> None:
        """Attaches to the start of each epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seeds torch, which the samplers draw from, and the transforms."""
        seed = (self.seed * 1_000_003 + engine.state.epoch) % 2**32
        torch.manual_seed(seed)
        for number, item in enumerate(self.randomizables):
            item.set_random_state(seed=(seed + 7919 * (number + 1)) % 2**32)
