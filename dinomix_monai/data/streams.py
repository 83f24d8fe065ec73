"""Endless random streams of patches, cut into epochs."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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

    A thread may read ahead (``buffer_size``), as in ``monai.data.ThreadDataLoader``, so that a step does not wait for a
    disk. It draws as one would that does not, and what goes wrong in it is raised where the batch is asked for. Then
    only the last iterator goes on; the others are over.

    Args:
        dataset: cases; its ``transform`` is seeded along with the order.
        batch_size: patches of a batch in this process.
        steps: batches of an epoch.
        rank: number of this process.
        world_size: number of processes.
        buffer_size: batches that a thread reads ahead; 0 to read each when it is asked for.
        **kwargs: see ``monai.data.DataLoader``.

    Raises:
        ValueError: When ``buffer_size`` is less than 0.
    """

    dataset: Dataset
    sampler: _Share

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        steps: int,
        rank: int = 0,
        world_size: int = 1,
        buffer_size: int = 0,
        **kwargs: Any,
    ) -> None:
        if buffer_size < 0:
            raise ValueError(f"buffer_size must be >= 0, got {buffer_size}.")
        generator = torch.Generator()
        order = RandomSampler(dataset, num_samples=batch_size * steps * world_size, generator=generator)
        sampler = _Share(order, batch_size, rank, world_size)
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, generator=generator, **kwargs)
        self.buffer_size = buffer_size
        self._ahead: Generator | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # PyTorch names the iterators that it has itself
        self._stop_reading()
        batches = super().__iter__()
        if not self.buffer_size:
            return batches
        self._ahead = _read_ahead(batches, self.buffer_size)
        return self._ahead

    def _stop_reading(self) -> None:
        if self._ahead is not None:
            self._ahead.close()

    def set_random_state(self, seed: int) -> PatchStream:
        """Seeds the order of the cases, and the random transforms for the rank of this process."""
        # Or a thread would draw from transforms while they are seeded.
        self._stop_reading()
        # A new generator, because an iterator of the epoch before still draws from the old one when it is exhausted.
        self.generator = self.sampler.order.generator = torch.Generator().manual_seed(seed)
        self.dataset.transform.set_random_state(seed=rank_seed(seed, self.sampler.rank))
        return self


def _read_ahead(batches: Iterator[Any], size: int) -> Generator[Any, None, None]:
    # MONAI's ThreadBuffer takes an error in its thread for the end of the batches.
    reader = ThreadPoolExecutor(1, "patches")
    try:
        ahead = deque(reader.submit(next, batches, None) for _ in range(size))
        while (batch := ahead.popleft().result()) is not None:
            ahead.append(reader.submit(next, batches, None))
            yield batch
    finally:
        reader.shutdown(cancel_futures=True)


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
