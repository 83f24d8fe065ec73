"""Endless random streams of patches, cut into epochs."""

from __future__ import annotations

from typing import Any

import torch
from monai.data import DataLoader, Dataset
from torch.utils.data import RandomSampler

__all__ = ["PatchStream", "patch_stream"]


class PatchStream(DataLoader):
    """
    Batches of a fixed number per epoch, whatever the number of cases: labeled and unlabeled streams then keep step.

    Within an epoch cases are drawn without repetition until all have been seen, then anew. The order is drawn from a
    generator of its own.

    Args:
        dataset: cases; its ``transform`` is seeded along with the order.
        batch_size: patches of a batch.
        steps: batches of an epoch.
        **kwargs: see ``monai.data.DataLoader``.
    """

    dataset: Dataset
    sampler: RandomSampler

    def __init__(self, dataset: Dataset, batch_size: int, steps: int, **kwargs: Any) -> None:
        generator = torch.Generator()
        sampler = RandomSampler(dataset, num_samples=batch_size * steps, generator=generator)
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, generator=generator, **kwargs)

    def set_random_state(self, seed: int) -> PatchStream:
        """Seeds the order of the cases and the random transforms."""
        # A new generator, because an iterator of the epoch before still draws from the old one when it is exhausted.
        self.generator = self.sampler.generator = torch.Generator().manual_seed(seed)
        self.dataset.transform.set_random_state(seed=seed)
        return self


def patch_stream(dataset: Dataset, batch_size: int, steps: int, **kwargs: Any) -> PatchStream | None:
    """
    A :class:`PatchStream`, or ``None`` when the data set is empty: no unlabeled case is no error.

    Raises:
        ValueError: When ``batch_size`` or ``steps`` is less than 1.
    """
    if batch_size < 1 or steps < 1:
        raise ValueError(f"batch_size and steps must be >= 1, got {batch_size} and {steps}.")
    return PatchStream(dataset, batch_size, steps, **kwargs) if len(dataset) else None
