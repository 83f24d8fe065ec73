"""Drawing the recipes of PIC: directions, recipients, donors, classes, boxes and deformations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.transforms import RandAffineGrid, Randomizable
from monai.utils import convert_to_tensor

from dinomix_monai.transforms.donor_bank import DonorBank, Patch
from dinomix_monai.transforms.pic_curriculum import ClassCurriculum, imbalance
from dinomix_monai.transforms.pic_recipe import Box, MixRecipe, Paste, deform

__all__ = ["DIRECTIONS", "RecipeSampler", "Recipient"]

DIRECTIONS = ("labeled_to_unlabeled", "unlabeled_to_labeled", "labeled_to_labeled", "unlabeled_to_unlabeled")
"""Kind of the patch that a box comes from, and kind of the patch that it goes to."""

_ATTEMPTS = 4
"""How many boxes are drawn for a paste until one fits into the recipient."""


@dataclass(frozen=True, eq=False)
class Recipient:
    """
    What drawing needs to know of a patch of the batch.

    Attributes:
        labeled: whether its label is ground truth.
        position: its offset in its volume, in voxels, shape (dims,), on the CPU.
        own_donor: the same patch in the donor bank, from which it gets no box; ``None`` where the bank does not have
            it.
    """

    labeled: bool
    position: torch.Tensor
    own_donor: Patch | None = None


class RecipeSampler(Randomizable):
    """
    Draws the recipes of mixed patches from the donors of a bank; all of its draws come from ``self.R``.

    :class:`PICCutMix` says at more length what its arguments mean.

    Args:
        bank: donors. The patches of the batch must be among them before recipes are drawn.
        curriculum: gives the probability of each class.
        directions: relative frequency of each of :data:`DIRECTIONS`; ``None`` for all of them, equally frequent.
        prob: probability that a mixed patch gets boxes at all.
        num_boxes: number of boxes of each mixed patch that gets any.
        box_fraction: least and greatest side of a box as a fraction of the patch.
        placement: {``"same"``, ``"anatomical"``} whether a box keeps its place in the patch or in the body.
        affine_grid: draws the deformations, from the random state of the sampler; ``None`` for no deformation.
        blind_share: share of blind boxes in [0, 1]; ``None`` for 1 minus the imbalance of the labeled voxels.

    Raises:
        ValueError: When an argument is outside its range.
    """

    def __init__(
        self,
        bank: DonorBank,
        curriculum: ClassCurriculum,
        directions: Mapping[str, float] | None = None,
        prob: float = 1.0,
        num_boxes: int = 2,
        box_fraction: Sequence[float] = (0.25, 0.5),
        placement: str = "same",
        affine_grid: RandAffineGrid | None = None,
        blind_share: float | None = None,
    ) -> None:
        self.bank, self.curriculum = bank, curriculum
        self.directions = _checked_directions(directions)
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be in [0, 1], got {prob}. Pass 1 for boxes in every mixed patch.")
        if num_boxes < 1:
            raise ValueError(f"num_boxes must be >= 1, got {num_boxes}. Pass prob=0 for patches without boxes.")
        if len(box_fraction) != 2 or not 0 < box_fraction[0] <= box_fraction[1] <= 1:
            raise ValueError(
                f"box_fraction must be two numbers 0 < least <= greatest <= 1, got {tuple(box_fraction)}. Pass the "
                "same number twice for boxes of one size."
            )
        if placement not in ("same", "anatomical"):
            raise ValueError(f"placement must be 'same' or 'anatomical', got {placement!r}. Pass one of the two.")
        if blind_share is not None and not 0 <= blind_share <= 1:
            raise ValueError(
                f"blind_share must be in [0, 1] or None, got {blind_share}. Pass None for the share that follows from "
                "the imbalance of the classes."
            )
        self.prob, self.num_boxes, self.box_fraction = prob, num_boxes, tuple(box_fraction)
        self.placement = placement
        self.blind_share = 1 - imbalance(curriculum.labeled_counts[1:]) if blind_share is None else blind_share
        self.affine_grid = affine_grid
        self._share_random_state()

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RecipeSampler:
        """See :meth:`monai.transforms.Randomizable.set_random_state`."""
        super().set_random_state(seed, state)
        self._share_random_state()
        return self

    def _share_random_state(self) -> None:
        if self.affine_grid is not None:
            self.affine_grid.set_random_state(state=self.R)

    def __call__(
        self, recipients: Sequence[Recipient], spatial_shape: Sequence[int], num_mixed: int
    ) -> tuple[MixRecipe, ...]:
        """
        Draws the recipe of each mixed patch.

        Args:
            recipients: patches of the batch, in its order.
            spatial_shape: sides (H, W[, D]) of a patch.
            num_mixed: number of mixed patches.

        Returns:
            ``num_mixed`` recipes.
        """
        names, frequencies = zip(*self.directions.items())
        probabilities = np.array(frequencies) / sum(frequencies)
        recipes = []
        for number in range(num_mixed):
            direction = self.R.choice(names, p=probabilities)
            recipes.append(self._draw_recipe(number, direction, recipients, spatial_shape))
        return tuple(recipes)

    def draw_class(self, labeled: bool, own_donor: Patch | None = None) -> int | None:
        """
        Draws a foreground class among those that have a donor.

        Args:
            labeled: whether the donor shall have ground truth or pseudo-labels.
            own_donor: the recipient in the bank, which does not count as a donor.

        Returns:
            The class; ``None`` when no class has a donor.
        """
        has_donor = self.bank.has_donor(labeled, excluded=own_donor)
        if not has_donor.any():
            return None
        p = self.curriculum.probabilities(labeled) * has_donor
        return int(1 + self.R.choice(len(p), p=p / p.sum()))

    def _draw_recipe(
        self, number: int, direction: str, recipients: Sequence[Recipient], spatial_shape: Sequence[int]
    ) -> MixRecipe:
        origin, destination = direction.split("_to_")
        # Patches of a kind take turns; in a batch of the other kind alone, those do.
        of_kind = [i for i, each in enumerate(recipients) if each.labeled == (destination == "labeled")]
        candidates = of_kind or list(range(len(recipients)))
        recipient = candidates[number % len(candidates)]
        num_boxes = self.num_boxes if self.R.random_sample() < self.prob else 0
        pastes = [self._draw_paste(origin == "labeled", recipients[recipient]) for _ in range(num_boxes)]
        grid = self._draw_grid(spatial_shape)
        return MixRecipe(str(direction), recipient, grid, tuple(paste for paste in pastes if paste))

    def _draw_paste(self, from_labeled: bool, recipient: Recipient) -> Paste | None:
        """Draws a box; ``None`` when there is no donor, or none of the boxes that were tried fits."""
        # A box of the recipient's own would change nothing, or show a patient beside a deformed copy.
        own_donor = recipient.own_donor
        for _ in range(_ATTEMPTS):
            is_blind = self.R.random_sample() < self.blind_share
            class_index = None if is_blind else self.draw_class(from_labeled, own_donor)
            donors = self.bank.donors(from_labeled, class_index, excluded=own_donor)
            if not donors:
                return None
            paste = self._draw_box(donors[self.R.randint(len(donors))], class_index, recipient.position)
            if paste is not None:
                return paste
        return None

    def _draw_box(self, donor: Patch, class_index: int | None, position: torch.Tensor) -> Paste | None:
        """Draws a box of a donor for a recipient at a position; ``None`` when nothing of the donor fits into it."""
        label, _, donor_position, *_ = donor
        shape = np.array(label.shape[1:])
        grid = self._draw_grid(shape)
        shift = np.zeros(len(shape), dtype=int)
        if self.placement == "anatomical":
            shift = (donor_position.cpu() - position).round().int().numpy()
        # The voxels of the recipient where the shifted donor has any.
        low, high = np.maximum(shift, 0), shape + np.minimum(shift, 0)
        if (high <= low).any():
            return None
        if class_index is None:
            center: np.ndarray | None = np.array([self.R.randint(a, b) for a, b in zip(low, high)])
        else:
            center = self._draw_voxel(_class_voxels(donor, class_index, grid) + shift, low, high)
        if center is None:
            return None
        fraction = self.R.uniform(self.box_fraction[0], self.box_fraction[1], len(shape))
        sides = np.minimum(np.maximum(1, np.round(fraction * shape)).astype(int), high - low)
        # A box that would leave the patch is moved, not cut, so that its size does not depend on the place.
        start = np.clip(center - sides // 2, low, high - sides)
        source = _box(start - shift, sides)
        # A copy of what the box needs, because a view would keep the grid of the whole donor in memory.
        grid = None if grid is None else grid[source].clone()
        return Paste(donor, class_index, tuple(center.tolist()), source, _box(start, sides), grid)

    def _draw_voxel(self, voxels: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
        """Draws one of the voxels (N, dims) that lie in ``low <= voxel < high``; ``None`` when none does."""
        inside = voxels[((voxels >= low) & (voxels < high)).all(1)]
        return inside[self.R.randint(len(inside))] if len(inside) else None

    def _draw_grid(self, spatial_shape: Sequence[int] | np.ndarray) -> torch.Tensor | None:
        if self.affine_grid is None:
            return None
        return convert_to_tensor(self.affine_grid(spatial_size=[int(side) for side in spatial_shape]))


def _checked_directions(directions: Mapping[str, float] | None) -> dict[str, float]:
    directions = dict.fromkeys(DIRECTIONS, 1.0) if directions is None else dict(directions)
    is_known = bool(directions) and not set(directions) - set(DIRECTIONS)
    if not is_known or min(directions.values()) < 0 or not sum(directions.values()):
        raise ValueError(
            f"directions must map some of {', '.join(DIRECTIONS)} to frequencies >= 0, got {directions}. Pass None "
            "for all of them, equally frequent."
        )
    return directions


def _class_voxels(donor: Patch, class_index: int, grid: torch.Tensor | None) -> np.ndarray:
    """Indices of the voxels of a class that have a weight, in the deformed donor, shape (N, dims)."""
    label, weight = donor[:2] if grid is None else deform(donor[:2], grid, ["nearest", "nearest"])
    return ((label == class_index) & (weight > 0))[0].nonzero().cpu().numpy()


def _box(start: np.ndarray, sides: np.ndarray) -> Box:
    return slice(None), *(slice(int(a), int(a + n)) for a, n in zip(start, sides))
