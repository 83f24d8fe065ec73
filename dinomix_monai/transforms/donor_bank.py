"""The donor bank of PIC: recent patches, listed by the classes that they contain."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_tensor

__all__ = ["DonorBank", "Patch"]

Patch = tuple[torch.Tensor, ...]
"""
The parts of a patch, without a batch axis: label and weight of shape (1, H, W[, D]), position of shape (dims,), and
images of shape (C, H, W[, D]).
"""


class DonorBank:
    """
    The newest few patches of each class, apart for ground truth and for pseudo-labels.

    A patch that contains several classes is kept once and listed under each of them. It is dropped when the last of
    these lists has moved on; a rare class therefore keeps its donors while common classes turn over.

    Args:
        num_classes: number of classes, background included; background is never listed.
        size: number of patches that are kept for each class and origin.

    Raises:
        ValueError: When ``size`` is less than 1.
    """

    def __init__(self, num_classes: int, size: int) -> None:
        if size < 1:
            raise ValueError(f"size must be >= 1, got {size}. Pass the number of patches to keep for each class.")
        self.size = size
        # By origin (whether the label is ground truth), then by class.
        self._recent: dict[bool, list[deque[Patch]]] = {
            labeled: [deque(maxlen=size) for _ in range(num_classes)] for labeled in (True, False)
        }

    def add(self, patch: Patch, classes: Iterable[int], labeled: bool) -> Patch | None:
        """
        Lists a copy of a patch under each of its classes.

        Args:
            patch: its parts.
            classes: classes that it contains; background does not count.
            labeled: whether its label is ground truth.

        Returns:
            The copy, by which the other methods know it; ``None`` where the patch has no class and is not kept.
        """
        foreground = [class_index for class_index in classes if class_index > 0]
        if not foreground:
            return None
        # A view would keep its whole batch alive, here and in every file that the state is saved to.
        copy = tuple(convert_to_tensor(part).clone() for part in patch)
        for class_index in foreground:
            self._recent[bool(labeled)][class_index].append(copy)
        return copy

    def has_donor(self, labeled: bool, excluded: Patch | None = None) -> np.ndarray:
        """
        Tells for each foreground class whether it has a donor.

        Args:
            labeled: whether the donor shall have ground truth or pseudo-labels.
            excluded: patch that :meth:`add` returned, which does not count.

        Returns:
            Flags of shape (num_classes - 1,).
        """
        return np.array([any(patch is not excluded for patch in recent) for recent in self._recent[labeled][1:]])

    def donors(self, labeled: bool, class_index: int | None = None, excluded: Patch | None = None) -> list[Patch]:
        """
        The donors of one class, or of all.

        Args:
            labeled: whether the donors shall have ground truth or pseudo-labels.
            class_index: class that they contain; ``None`` for any.
            excluded: patch that :meth:`add` returned, which is left out.

        Returns:
            Each donor once; those of one class with the oldest first.
        """
        lists = self._recent[labeled] if class_index is None else [self._recent[labeled][class_index]]
        return [patch for patch in _each_once(lists).values() if patch is not excluded]

    @property
    def nbytes(self) -> int:
        """What its patches take of the memory."""
        return sum(map(_nbytes, _each_once(self._lists()).values()))

    @property
    def most_nbytes(self) -> int:
        """What its patches take when all lists are full of patches that are in no other list; 0 for an empty bank."""
        largest = max(map(_nbytes, _each_once(self._lists()).values()), default=0)
        # Background has lists, too, and no patches in them.
        return (len(self._lists()) - 2) * self.size * largest

    def state_dict(self) -> dict[str, Any]:
        """
        Every patch once, and for each origin and class the numbers of its patches.

        Of an image such as the map of source coordinates, whose channels are constant along some axes, one voxel is
        saved along these axes.
        """
        lists = self._lists()
        patches = _each_once(lists)
        numbers = {key: number for number, key in enumerate(patches)}
        return {
            "patches": [_compressed(patch) for patch in patches.values()],
            "lists": [[numbers[id(patch)] for patch in recent] for recent in lists],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restores what :meth:`state_dict` gave.

        Raises:
            ValueError: When ``state`` is of a bank with another number of classes.
        """
        patches = [_decompressed(parts) for parts in state["patches"]]
        lists = self._lists()
        if len(state["lists"]) != len(lists):
            raise ValueError(
                f"state must be of a bank with {len(lists) // 2} classes, got {len(state['lists']) // 2}. Load the "
                "state of a run with the same classes."
            )
        for recent, numbers in zip(lists, state["lists"]):
            recent.clear()
            recent.extend(patches[number] for number in numbers)

    def _lists(self) -> list[deque[Patch]]:
        """The lists of all classes, first those with ground truth."""
        return [recent for labeled in (True, False) for recent in self._recent[labeled]]


def _each_once(lists: Iterable[Iterable[Patch]]) -> dict[int, Patch]:
    """Each patch of several lists once, by its ``id``: tensors cannot be compared as a whole."""
    return {id(patch): patch for patch in chain.from_iterable(lists)}


def _nbytes(patch: Patch) -> int:
    return sum(part.numel() * part.element_size() for part in patch)


def _compressed(patch: Patch) -> list[torch.Tensor | list[torch.Tensor]]:
    """The label as it is, because it has the shape; maps of this shape without the axes along which they repeat."""
    label, *others = patch
    return [
        label,
        *(_without_constant_axes(part) if part.shape[1:] == label.shape[1:] else part for part in others),
    ]


def _decompressed(parts: Sequence[torch.Tensor | Sequence[torch.Tensor]]) -> Patch:
    spatial_shape = parts[0].shape[1:]  # type: ignore[union-attr]  # the label is never compressed
    return tuple(
        part if isinstance(part, torch.Tensor) else torch.stack([channel.expand(spatial_shape) for channel in part])
        for part in parts
    )


def _without_constant_axes(image: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
    """Channels of an image, 1 long along axes where nothing changes; the image itself where there are no such axes."""
    channels = [_channel_without_constant_axes(channel) for channel in image]
    is_whole = all(channel.shape == image.shape[1:] for channel in channels)
    # A view would take the whole image along into the file.
    return image if is_whole else [channel.clone() for channel in channels]


def _channel_without_constant_axes(channel: torch.Tensor) -> torch.Tensor:
    for axis in range(channel.ndim):
        first = channel.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(channel), channel):
            channel = first
    return channel
