"""A step whose loss or gradient is not finite, described for whoever has to find out why."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import SupervisedTrainer
from monai.utils import ImageMetaKey
from monai.utils.enums import CommonKeys as Keys

from dinomix_monai.core.keys import LossKeys
from dinomix_monai.core.tensor_file import write_tensor_file

__all__ = ["BadStep"]


class BadStep:
    """
    The present step of a trainer, whose loss or gradient is not finite.

    Making this object reads numbers from a GPU, and so waits for it.

    Args:
        engine: the trainer, whose ``state.output`` has the terms of the loss.
    """

    def __init__(self, engine: SupervisedTrainer) -> None:
        self.iteration = engine.state.iteration
        output = engine.state.output
        self.terms = {
            str(term): float(torch.as_tensor(output[term]).detach())
            for term in (Keys.LOSS, *LossKeys)
            if term in output
        }
        # Without labeled images, an epoch goes over the unlabeled ones.
        self.batches = {"labeled" if getattr(engine, "has_labels", True) else "unlabeled": engine.state.batch}
        if (unlabeled := getattr(engine, "unlabeled_batch", None)) is not None:
            self.batches["unlabeled"] = unlabeled

    @property
    def non_finite_terms(self) -> dict[str, float]:
        """The terms of the loss that are not finite; their sum is among them only if it is the only one."""
        non_finite = {name: value for name, value in self.terms.items() if not math.isfinite(value)}
        without_sum = {name: value for name, value in non_finite.items() if name != Keys.LOSS}
        return without_sum or non_finite

    @property
    def cases(self) -> list[str]:
        """Files of the patches with voxels that are not finite; where all voxels are finite, files of all patches."""
        patches = [patch for batch in self.batches.values() for patch in _files_and_finiteness(batch)]
        non_finite = [file for file, is_finite in patches if not is_finite]
        return sorted({*(non_finite or (file for file, _ in patches))})

    def describe(self) -> str:
        """A phrase about the step that says which terms of its loss are not finite, and which cases it has."""
        what = " and ".join(f"its {name} loss is {value}" for name, value in self.non_finite_terms.items())
        what = what.replace("loss loss", "loss") or "its gradient is not finite"
        return f"{what} (cases: {', '.join(self.cases)})" if self.cases else what

    def save(self, folder: str | Path) -> Path:
        """Writes terms, cases and batches as plain tensors and numbers to a file in ``folder``; returns its path."""
        batches = {
            name: {str(key): value.detach().as_subclass(torch.Tensor).cpu() for key, value in _named_tensors(batch)}
            for name, batch in self.batches.items()
        }
        content = {"step": self.iteration, "terms": self.terms, "cases": self.cases, **batches}
        return write_tensor_file(content, Path(folder) / f"step_{self.iteration:07d}.pt")


def _named_tensors(batch: Any) -> list[tuple[Any, torch.Tensor]]:
    pairs = batch.items() if isinstance(batch, Mapping) else enumerate(batch)
    return [(key, value) for key, value in pairs if isinstance(value, torch.Tensor)]


def _files_and_finiteness(batch: Any) -> list[tuple[str, bool]]:
    """For each patch of a batch that knows its files, the file and whether all voxels of the patch are finite."""
    image = batch.get(Keys.IMAGE) if isinstance(batch, Mapping) else None
    files = image.meta.get(ImageMetaKey.FILENAME_OR_OBJ) if isinstance(image, MetaTensor) else None
    if image is None or files is None:
        return []
    files = [files] if isinstance(files, str) else files
    return [(str(file), bool(patch.isfinite().all())) for file, patch in zip(files, image.as_tensor())]
