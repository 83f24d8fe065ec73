"""The recipe of a mixed patch, as PIC draws it, and its application, in which nothing is random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from monai.transforms import Resample
from monai.utils import convert_to_tensor

from dinomix_monai.transforms.donor_bank import Patch

__all__ = ["Box", "MixRecipe", "Paste", "apply_recipes", "deform"]

Box = tuple[slice, ...]
"""The voxels of a box: one slice for the channels, which takes all of them, and one for each spatial axis."""

_LABEL_AND_WEIGHT_MODES = ("nearest", "nearest")


@dataclass(frozen=True, eq=False)
class Paste:
    """
    A box that is cut from a donor and pasted into the recipient.

    Attributes:
        donor: patch that the box is cut from, with the parts that :data:`dinomix_monai.transforms.donor_bank.Patch`
            lists.
        class_index: class that the box was drawn around; ``None`` for a box that was placed blindly.
        center: voxel of the recipient that the box was drawn around, one index for each spatial axis. It is the middle
            of the box, unless the box had to be moved to lie inside of the patch.
        source: the box in the donor, deformed if it is.
        target: the same box in the recipient.
        grid: deformation of the donor: where each voxel of the box comes from, in voxels from the center of the donor
            and in homogeneous coordinates, shape (dims + 1, h, w[, d]); ``None`` where the donor is not deformed.
    """

    donor: Patch = field(repr=False)
    class_index: int | None
    center: tuple[int, ...]
    source: Box
    target: Box
    grid: torch.Tensor | None = field(default=None, repr=False)

    def content(self, modes: Sequence[str]) -> list[torch.Tensor]:
        """
        What the box holds.

        Args:
            modes: for each image of the donor, how a deformation interpolates it.

        Returns:
            Label, weight and images of the donor inside of the box, each of shape (C, h, w[, d]).
        """
        label, weight, _, *images = self.donor
        parts = [label, weight, *images[: len(modes)]]
        if self.grid is None:
            return [part[self.source] for part in parts]
        return deform(parts, self.grid, [*_LABEL_AND_WEIGHT_MODES, *modes])


@dataclass(frozen=True, eq=False)
class MixRecipe:
    """
    All that was drawn for one mixed patch.

    Attributes:
        direction: one of :data:`dinomix_monai.transforms.DIRECTIONS`, as it was drawn. Where the batch has no patch of
            its destination, the recipient is of the other kind.
        recipient: number of the recipient in the batch.
        grid: deformation of the recipient: where each of its voxels comes from, in voxels from its center and in
            homogeneous coordinates, shape (dims + 1, H, W[, D]); ``None`` where it is not deformed.
        pastes: boxes that are pasted into the deformed recipient, one after the other.
    """

    direction: str
    recipient: int
    grid: torch.Tensor | None = field(default=None, repr=False)
    pastes: tuple[Paste, ...] = ()


def apply_recipes(
    batches: Sequence[torch.Tensor], recipes: Sequence[MixRecipe], modes: Sequence[str] | None = None
) -> tuple[torch.Tensor, ...]:
    """
    Makes the mixed patches of a batch.

    The result follows from the arguments alone: no random number is drawn, and the same recipes give the same patches
    digit for digit, however often they are applied.

    Args:
        batches: label and weight of shape (B, 1, H, W[, D]), and images of shape (B, C, H, W[, D]). They are left as
            they are.
        recipes: one for each mixed patch. They were drawn for this batch, or for another of the same shape.
        modes: for each of the images, how a deformation interpolates it: ``"bilinear"``, which repeats the edge beyond
            a patch, or ``"nearest"``, which is 0 there. ``None`` for ``"bilinear"`` throughout.

    Returns:
        Label, weight and images of the ``M = len(recipes)`` mixed patches, in the order of ``batches``, each of shape
        (M, C, H, W[, D]).

    Raises:
        ValueError: When ``modes`` are not as many as the images, or when a donor has fewer images than ``batches``.
    """
    num_images = len(batches) - len(_LABEL_AND_WEIGHT_MODES)
    modes = ["bilinear"] * num_images if modes is None else list(modes)
    if len(modes) != num_images:
        raise ValueError(
            f"modes must have one mode for each of {num_images} images, got {modes}. Pass 'bilinear' or 'nearest' for "
            "each image."
        )
    # Not a list, which each of them would copy to its GPU.
    recipients = torch.tensor([recipe.recipient for recipe in recipes], dtype=torch.long, device=batches[0].device)
    mixed = tuple(batch[recipients] for batch in batches)
    for number, recipe in enumerate(recipes):
        patch = [batch[number] for batch in mixed]
        if recipe.grid is not None:
            for part, deformed in zip(patch, deform(patch, recipe.grid, [*_LABEL_AND_WEIGHT_MODES, *modes])):
                part[:] = deformed
        for paste in recipe.pastes:
            _check_images(paste.donor, num_images)
            for part, content in zip(patch, paste.content(modes)):
                part[paste.target] = content.to(part.dtype)
    return mixed


def _check_images(donor: Patch, num_images: int) -> None:
    found = len(donor) - 3
    if found < num_images:
        raise ValueError(
            f"Donors must have each of the {num_images} images that are mixed, got one with {found}. Mix the same "
            "images in every step, or begin with an empty donor bank."
        )


def deform(parts: Sequence[torch.Tensor], grid: torch.Tensor, modes: Sequence[str]) -> list[torch.Tensor]:
    """
    Resamples the parts of one patch at the voxels of a grid.

    Args:
        parts: tensors of shape (C, H, W[, D]).
        grid: where each voxel comes from, in voxels from the center of the patch and in homogeneous coordinates, shape
            (dims + 1, h, w[, d]), as ``monai.transforms.AffineGrid`` makes it.
        modes: for each part ``"bilinear"``, which repeats the edge beyond the patch, or ``"nearest"``, which is 0
            there.

    Returns:
        The deformed parts, in their order and each in its dtype, of shape (C, h, w[, d]).
    """
    resample = Resample(dtype=np.float32)
    deformed = list(parts)
    # Parts that are interpolated alike go through one call, which saves time.
    for mode in dict.fromkeys(modes):
        alike = [number for number, each in enumerate(modes) if each == mode]
        padding = "zeros" if mode == "nearest" else "border"
        stacked = torch.cat([convert_to_tensor(parts[number]).to(torch.float32) for number in alike])
        resampled = convert_to_tensor(resample(stacked, grid, mode, padding))
        for number, part in zip(alike, resampled.split([len(parts[number]) for number in alike])):
            deformed[number] = part.to(parts[number].dtype)
    return deformed
