"""Endless random streams of patches, cut into epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from monai.data import DataLoader, Dataset
from torch.utils.data import RandomSampler, Sampler

from dinomix_monai.core.processes import rank_seed

__all__ = ["PatchStream", "cases_of_rank", "patch_stream"]


class PatchStream(DataLoader):
    """
    Batches of a fixed number per epoch, whatever the number of cases: labeled and unlabeled streams then keep step.

    Within an epoch cases are drawn without repetition until all have been seen, then anew. The order is drawn from a
    generator of its own. Where several processes train together, all draw one order, and each takes its share of every
    batch; their transforms draw differently.

    Args:
        dataset: cases; its ``transform`` is seeded along with the order.
        batch_size: patches of a batch in this process.
        steps: batches of an epoch.
        rank: number of this process.
        world_size: number of processes.
        **kwargs: see ``monai.data.DataLoader``.
    """

    dataset: Dataset
    sampler: _Share

    def __init__(
        self, dataset: Dataset, batch_size: int, steps: int, rank: int = 0, world_size: int = 1, **kwargs: Any
    ) -> None:
        generator = torch.Generator()
        order = RandomSampler(dataset, num_samples=batch_size * steps * world_size, generator=generator)
        sampler = _Share(order, batch_size, rank, world_size)
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, generator=generator, **kwargs)

    def set_random_state(self, seed: int) -> PatchStream:
        """Seeds the order of the cases, and the random transforms for the rank of this process."""
        # A new generator, because an iterator of the epoch before still draws from the old one when it is exhausted.
        self.generator = self.sampler.order.generator = torch.Generator().manual_seed(seed)
        self.dataset.transform.set_random_state(seed=rank_seed(seed, self.sampler.rank))
        return self


class _Share(Sampler):
    """Of an order of cases those that one process takes: ``size`` of each batch of ``size * world_size``."""

    def __init__(self, order: RandomSampler, size: int, rank: int, world_size: int) -> None:
        self.order, self.size, self.rank, self.world_size = order, size, rank, world_size

    def __iter__(self) -> Iterator[int]:
        for place, index in enumerate(self.order):
            if place // self.size % self.world_size == self.rank:
                yield index

    def __len__(self) -> int:
        return len(self.order) // self.world_size


def patch_stream(dataset: Dataset, batch_size: int, steps: int, **kwargs: Any) -> PatchStream | None:
    """
    A :class:`PatchStream`, or ``None`` when the data set is empty: no unlabeled case is no error.

    Raises:
        ValueError: When ``batch_size`` or ``steps`` is less than 1.
    """
    if batch_size < 1 or steps < 1:
        raise ValueError(f"batch_size and steps must be >= 1, got {batch_size} and {steps}.")
    return PatchStream(dataset, batch_size, steps, **kwargs) if len(dataset) else None


def cases_of_rank(cases: Sequence[Any], rank: int, world_size: int) -> Sequence[Any]:
    """
    The cases that one of several processes evaluates, so that every case counts as often in the mean over all.

    Each process has every ``world_size``-th case; where there are fewer cases than processes, each has all of them.
    """
    return cases if len(cases) < world_size else cases[rank::world_size]
