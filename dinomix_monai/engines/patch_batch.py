"""The patches of one step as a value."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from dinomix_monai.core.keys import BatchKeys

__all__ = ["PatchBatch"]


@dataclass(frozen=True)
class PatchBatch:
    """
    Patches on the device of the training, with all that a step knows of them.

    Args:
        image: what a network sees of them, shape (B, C, H, W[, D]).
        label: ground truth or pseudo-labels as label values, shape (B, 1, H, W[, D]); ``None`` where there are none.
        weight: weight of the label of each voxel, same shape; ``None`` where all count alike.
        teacher_view: what the frozen teacher looks at, shape (B, C', H, W[, D]); ``None`` where that is the image.
        position: offset of each patch in its volume, in voxels, shape (B, dims); ``None`` where it is not known.
        is_labeled: for each patch, whether its label is ground truth.
    """

    image: torch.Tensor
    label: torch.Tensor | None = None
    weight: torch.Tensor | None = None
    teacher_view: torch.Tensor | None = None
    position: torch.Tensor | None = None
    is_labeled: tuple[bool, ...] = ()

    def __len__(self) -> int:
        return len(self.image)

    @property
    def seen_by_teacher(self) -> torch.Tensor:
        """What the frozen teacher looks at, shape (B, C', H, W[, D])."""
        return self.image if self.teacher_view is None else self.teacher_view

    @classmethod
    def cat(cls, batches: Sequence[PatchBatch]) -> PatchBatch:
        """All patches of several batches in a row; what one of them lacks, the result lacks."""
        parts: dict[str, Any] = {}
        for name in _TENSORS:
            values = [getattr(batch, name) for batch in batches]
            parts[name] = None if any(value is None for value in values) else torch.cat(values)
        return cls(**parts, is_labeled=sum((batch.is_labeled for batch in batches), ()))

    def split(self, size: int) -> tuple[PatchBatch, PatchBatch]:
        """The first ``size`` patches, and the others."""
        return self._of(slice(size)), self._of(slice(size, None))

    def _of(self, part: slice) -> PatchBatch:
        tensors = {name: getattr(self, name) for name in _TENSORS}
        cut: dict[str, Any] = {name: value if value is None else value[part] for name, value in tensors.items()}
        return replace(self, **cut, is_labeled=self.is_labeled[part])

    def to_dict(self, teacher_key: str) -> dict[Hashable, Any]:
        """As a dictionary-based transform takes it; the frozen teacher's view stands under ``teacher_key``."""
        found: dict[Hashable, Any] = {
            BatchKeys.IMAGE: self.image,
            BatchKeys.LABEL: self.label,
            BatchKeys.WEIGHT: self.weight,
            BatchKeys.POSITION: self.position,
            BatchKeys.LABELED: list(self.is_labeled),
        }
        if self.teacher_view is not None:
            found[teacher_key] = self.teacher_view
        return {key: value for key, value in found.items() if value is not None}

    @classmethod
    def from_dict(cls, data: Mapping[Hashable, Any], teacher_key: str) -> PatchBatch:
        """What a dictionary-based transform made of :meth:`to_dict`; no patch of it counts as labeled."""
        view = None if teacher_key == BatchKeys.IMAGE else data.get(teacher_key)
        image = data[BatchKeys.IMAGE]
        label, weight = data.get(BatchKeys.LABEL), data.get(BatchKeys.WEIGHT)
        return cls(image, label, weight, view, is_labeled=(False,) * len(image))


_TENSORS = tuple(field.name for field in fields(PatchBatch) if field.name != "is_labeled")
