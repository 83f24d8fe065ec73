"""Random draws that follow from seed and epoch alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from ignite.engine import Engine, Events

from dinomix_monai.core.processes import rank_seed

__all__ = ["EpochSeedHandler"]


class EpochSeedHandler:
    """
    Seeds torch and the given transforms anew at the start of each epoch, from the seed of the run and the epoch.

    So an epoch draws the same numbers whether the run came to it in one go or was resumed before it.

    Args:
        seed: seed of the run.
        randomizables: transforms and other objects with ``set_random_state``; ``None`` entries are skipped.
        streams: objects that get the same seed in each of several processes, because they make processes draw
            differently by themselves, such as :class:`dinomix_monai.data.PatchStream`; ``None`` entries are skipped.
        rank: number of this process.
    """

    def __init__(
        self, seed: int, randomizables: Sequence[Any] = (), streams: Sequence[Any] = (), rank: int = 0
    ) -> None:
        self.seed, self.rank = seed, rank
        self.streams = [item for item in streams if item is not None]
        self.randomizables = [item for item in randomizables if item is not None]

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to the start of each epoch."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seeds torch, which the samplers draw from, the streams and the transforms."""
        seed = (self.seed * 1_000_003 + engine.state.epoch) % 2**32
        torch.manual_seed(rank_seed(seed, self.rank))
        for number, item in enumerate([*self.streams, *self.randomizables]):
            item_seed = (seed + 7919 * (number + 1)) % 2**32
            item.set_random_state(seed=item_seed if number < len(self.streams) else rank_seed(item_seed, self.rank))
