"""Recent patches by the classes that they contain."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_tensor

__all__ = ["DonorBank"]

Patch = tuple[torch.Tensor, ...]


class DonorBank:
    """
    The newest few patches of each class, apart for ground truth and for pseudo-labels.

    A patch is a tuple of tensors without a batch axis. One that contains several classes is kept once and listed under
    each of them, and is dropped when the last of these lists has moved on; a rare class therefore keeps its donors
    while common classes turn over.

    Args:
        num_classes: number of classes, background included; background is never listed.
        size: patches that are kept for each class and origin.

    Raises:
        ValueError: When ``size`` is less than 1.
    """

    def __init__(self, num_classes: int, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be >= 1, got {size}.")
        self._lists: dict[bool, list[deque[Patch]]] = {
            labeled: [deque(maxlen=size) for _ in range(num_classes)] for labeled in (True, False)
        }

    def add(self, patch: Patch, classes: Iterable[int], labeled: bool) -> Patch | None:
        """
        Lists a copy of a patch under each of ``classes``.

        Args:
            patch: its parts.
            classes: classes that it contains; background does not count.
            labeled: tells ground truth from pseudo-labels.

        Returns:
            The copy, by which :meth:`donors` knows it; ``None`` where it has no class and is not kept.
        """
        foreground = [c for c in classes if c > 0]
        if not foreground:
            return None
        # A view would keep its whole batch alive, here and in every file that the state is saved to.
        patch = tuple(convert_to_tensor(part).clone() for part in patch)
        for c in foreground:
            self._lists[bool(labeled)][c].append(patch)
        return patch

    def available(self, labeled: bool, but: Patch | None = None) -> np.ndarray:
        """For each foreground class, whether there is a donor of this origin but one; shape (num_classes - 1,)."""
        return np.array([any(patch is not but for patch in donors) for donors in self._lists[labeled][1:]])

    def donors(self, labeled: bool, class_index: int | None = None, but: Patch | None = None) -> Sequence[Patch]:
        """Donors of one class, or all patches of this origin, each once; without the one that :meth:`add` returned."""
        lists = self._lists[labeled] if class_index is None else [self._lists[labeled][class_index]]
        each_once = {id(patch): patch for patch in chain.from_iterable(lists)}
        return [patch for patch in each_once.values() if patch is not but]

    def state_dict(self) -> dict[str, Any]:
        """
        Every patch once, and for each origin and class the numbers of its patches.

        What repeats is left out: of a map such as where voxels come from, the axes along which a channel is constant.
        """
        lists = [donors for labeled in (True, False) for donors in self._lists[labeled]]
        patches = {id(patch): patch for patch in chain.from_iterable(lists)}
        number = {key: i for i, key in enumerate(patches)}
        return {
            "patches": [_packed(patch) for patch in patches.values()],
            "lists": [[number[id(patch)] for patch in donors] for donors in lists],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restores what :meth:`state_dict` gave.

        Raises:
            ValueError: When ``state`` is of a bank with another number of classes.
        """
        patches = [_unpacked(parts) for parts in state["patches"]]
        lists = [donors for labeled in (True, False) for donors in self._lists[labeled]]
        if len(state["lists"]) != len(lists):
            raise ValueError(f"state must be of a bank with {len(lists) // 2} classes, got {len(state['lists']) // 2}.")
        for donors, numbers in zip(lists, state["lists"]):
            donors.clear()
            donors.extend(patches[i] for i in numbers)


def _packed(patch: Patch) -> list[torch.Tensor | list[torch.Tensor]]:
    """The first part as it is, because it has the shape; the others without the axes along which they are constant."""
    first, *others = patch
    return [first, *(_without_constant_axes(part) if part.shape[1:] == first.shape[1:] else part for part in others)]


def _unpacked(parts: Sequence[torch.Tensor | Sequence[torch.Tensor]]) -> Patch:
    shape = parts[0].shape[1:]  # type: ignore[union-attr]  # the first part is never packed
    return tuple(
        part if isinstance(part, torch.Tensor) else torch.stack([channel.expand(shape) for channel in part])
        for part in parts
    )


def _without_constant_axes(part: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
    """Channels of a map, 1 long along axes where nothing changes; the map itself where there are no such axes."""
    channels = [_shrunk(channel) for channel in part]
    is_whole = all(channel.shape == part.shape[1:] for channel in channels)
    # A view would take the whole map along into the file.
    return part if is_whole else [channel.clone() for channel in channels]


def _shrunk(channel: torch.Tensor) -> torch.Tensor:
    for axis in range(channel.ndim):
        start = channel.narrow(axis, 0, 1)
        if torch.equal(start.expand_as(channel), channel):
            channel = start
    return channel
