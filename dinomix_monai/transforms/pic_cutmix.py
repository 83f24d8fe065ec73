"""PIC: progressive imbalance-aware CutMix, array form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.transforms import RandAffineGrid, Randomizable, Resample, Transform
from monai.utils import convert_to_tensor

from dinomix_monai.core.processes import gather_over_processes
from dinomix_monai.transforms.donor_bank import DonorBank, Patch

__all__ = ["DIRECTIONS", "PICCutMix", "class_probabilities", "imbalance"]

DIRECTIONS = ("labeled_to_unlabeled", "unlabeled_to_labeled", "labeled_to_labeled", "unlabeled_to_unlabeled")
"""Where a box comes from and where it goes."""


def class_probabilities(
    counts: Sequence[float] | np.ndarray,
    progress: float,
    beta: float = 0.5,
    curriculum: float = 1.0,
    gamma: float = 1.0,
) -> np.ndarray:
    """
    Probability of each class to be pasted: heavy on the tail at first, uniform at the end.

    ``q_c`` is proportional to ``(1 / (n_c + 1)) ** beta``, and ``p_c = (1 - s) q_c + s / C`` with
    ``s = min(progress / curriculum, 1) ** gamma``.

    Args:
        counts: voxels ``n_c`` of each foreground class.
        progress: steps done / steps planned, in [0, 1].
        beta: strength of the preference for rare classes, 0 for none.
        curriculum: progress at which the distribution has become uniform.
        gamma: exponent of the way there.

    Returns:
        Probabilities that sum to 1, shape (C,).
    """
    tail = (1.0 / (np.asarray(counts, dtype=float) + 1.0)) ** beta
    tail /= tail.sum()
    s = min(progress / curriculum, 1.0) ** gamma
    return (1 - s) * tail + s / len(tail)


def imbalance(counts: Sequence[float] | np.ndarray) -> float:
    """
    How unevenly voxels are spread over the foreground classes: 1 minus the normalized entropy of their shares.

    Returns:
        A number in [0, 1]; 0 for classes of equal size.
    """
    shares = np.asarray(counts, dtype=float)
    if len(shares) < 2 or shares.sum() == 0:
        return 0.0
    shares = shares[shares > 0] / shares.sum()
    # Rounding may leave equal shares a little below 0.
    return max(0.0, float(1 + (shares * np.log(shares)).sum() / np.log(len(counts))))


@dataclass(frozen=True)
class _Paste:
    # What a donor's label, weight and images have in the box, and where that goes in a recipient (C, H, W[, D]).
    parts: Sequence[torch.Tensor]
    target: tuple[slice, ...]


@dataclass(frozen=True)
class _Recipe:
    # For one mixed patch: number of the recipient in the batch, where its voxels are taken from, and what is pasted.
    recipient: int
    grid: torch.Tensor | None
    pastes: list[_Paste]


class PICCutMix(Randomizable, Transform):
    """
    Pastes boxes around organs from labeled and unlabeled patches into labeled and unlabeled patches; takes a batch.

    For each mixed patch a direction is drawn, then for each box a class from :func:`class_probabilities`, a donor that
    contains it (by ground truth or by pseudo-label, from this batch or from the bank of recent ones, and never the
    recipient itself), and a box around a random voxel of that class. Image, label and weight change at the same voxels,
    and the box keeps its place in the patch or in the body. Donors and recipients may be deformed first. Some boxes are
    placed blindly instead, as in plain CutMix: for classes of similar size blind boxes are better, so by default their
    share is what the imbalance of the labeled voxels leaves.

    Draws come from ``self.R`` only. ``progress`` is set from outside
    (:class:`dinomix_monai.handlers.CurriculumHandler`).

    Reference: Liu and Sun, "DINO-Mix", 2026, https://arxiv.org/abs/2602.07819. Boxes as in Yun et al., "CutMix", ICCV
    2019.

    Args:
        labeled_counts: voxels of each class over the labeled set, background first; sets the number of classes.
        directions: relative frequency of each of :data:`DIRECTIONS`; one that is left out does not occur.
        prob: probability that a mixed patch gets boxes at all.
        num_boxes: boxes for each mixed patch that gets any.
        box_fraction: least and greatest side of a box as a fraction of the patch, drawn for each axis.
        placement: {``"same"``, ``"anatomical"``} a box keeps its place in the patch, as in CutMix, or its place in the
            body: it is moved by the difference of the patches' positions, and organs that would come to lie outside of
            the recipient are not drawn.
        affine_grid: deforms every donor before a box is cut from it and every recipient before boxes are pasted, so
            that organs come in more sizes and poses than those of the few labeled patients; what it brings in from
            beyond a patch has weight 0. ``None`` to mix patches as they are. It draws from this transform's random
            state.
        blind_share: share of blind boxes in [0, 1]; ``None`` for ``1 - imbalance(labeled_counts)``.
        beta: see :func:`class_probabilities`.
        curriculum: see :func:`class_probabilities`.
        gamma: see :func:`class_probabilities`.
        bank_size: patches kept for each class and origin.
        count_decay: decay of the moving average of the pseudo-labeled voxels of each class.

    Raises:
        ValueError: When an argument is outside its range.
    """

    def __init__(
        self,
        labeled_counts: Sequence[float],
        directions: Mapping[str, float] | None = None,
        prob: float = 1.0,
        num_boxes: int = 2,
        box_fraction: Sequence[float] = (0.25, 0.5),
        placement: str = "same",
        affine_grid: RandAffineGrid | None = None,
        blind_share: float | None = None,
        beta: float = 0.5,
        curriculum: float = 1.0,
        gamma: float = 1.0,
        bank_size: int = 4,
        count_decay: float = 0.99,
    ) -> None:
        if len(labeled_counts) < 2 or min(labeled_counts) < 0:
            raise ValueError(
                f"labeled_counts must list >= 0 voxels for background and each class, got {labeled_counts}."
            )
        directions = dict.fromkeys(DIRECTIONS, 1.0) if directions is None else dict(directions)
        if (
            not directions
            or set(directions) - set(DIRECTIONS)
            or min(directions.values()) < 0
            or not sum(directions.values())
        ):
            raise ValueError(
                f"directions must map some of {', '.join(DIRECTIONS)} to frequencies >= 0, got {directions}."
            )
        if len(box_fraction) != 2 or not 0 < box_fraction[0] <= box_fraction[1] <= 1:
            raise ValueError(f"box_fraction must be two numbers 0 < least <= greatest <= 1, got {tuple(box_fraction)}.")
        if blind_share is not None and not 0 <= blind_share <= 1:
            raise ValueError(f"blind_share must be in [0, 1] or None, got {blind_share}.")
        if placement not in ("same", "anatomical"):
            raise ValueError(f"placement must be 'same' or 'anatomical', got {placement!r}.")
        if not 0 <= prob <= 1:
            raise ValueError(f"prob must be in [0, 1], got {prob}.")
        if num_boxes < 1:
            raise ValueError(f"num_boxes must be >= 1, got {num_boxes}.")
        if curriculum <= 0 or gamma <= 0 or beta < 0:
            raise ValueError(f"curriculum and gamma must be > 0 and beta >= 0, got {curriculum}, {gamma} and {beta}.")
        self.labeled_counts = np.asarray(labeled_counts, dtype=float)
        self.unlabeled_counts = np.zeros_like(self.labeled_counts)
        self.progress = 0.0
        self.directions = directions
        self.prob, self.num_boxes, self.placement = prob, num_boxes, placement
        self.box_fraction = tuple(box_fraction)
        self.blind_share = 1 - imbalance(self.labeled_counts[1:]) if blind_share is None else blind_share
        self.beta, self.curriculum, self.gamma = beta, curriculum, gamma
        self.count_decay = count_decay
        self.bank = DonorBank(len(self.labeled_counts), bank_size)
        self.affine_grid = affine_grid
        self._resample = Resample(dtype=np.float32)
        self._modes: list[str] = []
        self._share_random_state()
        # Of the patches of the present batch, what the bank has of each.
        self._own: list[Patch | None] = []
        self._recipes: list[_Recipe] = []

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> PICCutMix:
        """See :meth:`monai.transforms.Randomizable.set_random_state`."""
        super().set_random_state(seed, state)
        self._share_random_state()
        return self

    def _share_random_state(self) -> None:
        if self.affine_grid is not None:
            self.affine_grid.set_random_state(state=self.R)

    def probabilities(self, labeled: bool) -> np.ndarray:
        """Class probabilities at the present progress for donors of one origin; shape (num_classes - 1,)."""
        counts = self.labeled_counts if labeled else self.unlabeled_counts
        return class_probabilities(counts[1:], self.progress, self.beta, self.curriculum, self.gamma)

    def add_donors(self, patches: Sequence[Patch], labeled: Sequence[bool]) -> None:
        """
        Puts patches into the bank and counts their pseudo-labeled voxels.

        Under ``torch.distributed`` voxels are counted over all processes, in the order of ranks; every bank has the
        patches of its own process. All must add as many unlabeled patches.

        Args:
            patches: label, weight, position and images of each, without a batch axis.
            labeled: for each of them, whether its label is ground truth.
        """
        # Read at once, because each reading waits for a GPU.
        counts = torch.stack([self._count(patch) for patch in patches])
        self._own = []
        for (label, *rest), voxels, is_labeled in zip(patches, counts.cpu().numpy(), labeled):
            # One that is left out would come back in other steps.
            classes = voxels.nonzero()[0].tolist() if (voxels >= 0).all() else []
            # Classes are few; as they come, they take twice the memory of an image.
            self._own.append(self.bank.add((label.to(torch.int16), *rest), classes, is_labeled))
        unlabeled = [i for i, is_labeled in enumerate(labeled) if not is_labeled]
        if unlabeled:
            for voxels in gather_over_processes(counts[unlabeled]).cpu().numpy():
                if (voxels >= 0).all():
                    self.unlabeled_counts += (1 - self.count_decay) * (voxels - self.unlabeled_counts)

    def _count(self, patch: Patch) -> torch.Tensor:
        """Voxels of each class that have a weight, shape (num_classes,); -1 in a patch that is not finite."""
        label, weight, *rest = patch
        voxels = torch.zeros(len(self.labeled_counts), dtype=torch.long, device=label.device)
        voxels.scatter_add_(0, label.flatten().long(), (weight > 0).flatten().long())
        # A sum is finite where all is, and takes a fraction of the time.
        is_finite = torch.stack([part.sum().isfinite().to(label.device) for part in rest]).all()
        return torch.where(is_finite, voxels, -1)

    def randomize(  # type: ignore[override]  # MONAI's takes any data
        self, labeled: Sequence[bool], positions: torch.Tensor, num_mixed: int, shape: Sequence[int]
    ) -> None:
        """Draws directions, recipients, donors, boxes and deformations for ``num_mixed`` patches of a shape."""
        recipients = {
            origin: [i for i, value in enumerate(labeled) if bool(value) is origin] for origin in (True, False)
        }
        names, frequencies = zip(*self.directions.items())
        frequencies = np.array(frequencies) / sum(frequencies)
        self._recipes = []
        for number in range(num_mixed):
            origin, destination = self.R.choice(names, p=frequencies).split("_to_")
            candidates = recipients[destination == "labeled"] or recipients[destination != "labeled"]
            recipient = candidates[number % len(candidates)]
            count = self.num_boxes if self.R.random_sample() < self.prob else 0
            pastes = [self._draw_paste(origin == "labeled", recipient, positions[recipient]) for _ in range(count)]
            self._recipes.append(_Recipe(recipient, self._draw_grid(shape), [paste for paste in pastes if paste]))

    def _draw_paste(
        self, from_labeled: bool, recipient: int, position: torch.Tensor, attempts: int = 4
    ) -> _Paste | None:
        """A box, or ``None`` when no donor has anything that fits into the recipient."""
        # A box of its own would change nothing, or show a patient beside a deformed copy.
        own = self._own[recipient]
        for _ in range(attempts):
            blind = self.R.random_sample() < self.blind_share
            class_index = None if blind else self._draw_class(from_labeled, own)
            donors = self.bank.donors(from_labeled, class_index, own)
            if not donors:
                return None
            label, weight, donor_position, *images = donors[self.R.randint(len(donors))]
            shape = np.array(label.shape[1:])
            grid = self._draw_grid(shape)
            shift = np.zeros(len(shape), dtype=int)
            if self.placement == "anatomical":
                shift = (donor_position.cpu() - position).round().int().numpy()
            # Where in the recipient the donor has voxels.
            low, high = np.maximum(shift, 0), shape + np.minimum(shift, 0)
            if (high <= low).any():
                continue
            if class_index is None:
                center = np.array([self.R.randint(a, b) for a, b in zip(low, high)])
            else:
                labels, weights = self._deformed([label, weight], grid)
                voxels = ((labels == class_index) & (weights > 0))[0].nonzero().cpu().numpy() + shift
                voxels = voxels[((voxels >= low) & (voxels < high)).all(1)]
                if not len(voxels):
                    continue
                center = voxels[self.R.randint(len(voxels))]
            fraction = self.R.uniform(self.box_fraction[0], self.box_fraction[1], len(shape))
            sides = np.maximum(1, np.round(fraction * shape)).astype(int)
            # A box that would leave the patch is moved, not cut, so that its size does not depend on the place.
            sides = np.minimum(sides, high - low)
            start = np.clip(center - sides // 2, low, high - sides)
            parts = self._deformed([label, weight, *images], grid, _box(start - shift, sides))
            return _Paste(parts, _box(start, sides))
        return None

    def _draw_grid(self, shape: Sequence[int] | np.ndarray) -> torch.Tensor | None:
        return None if self.affine_grid is None else self.affine_grid(spatial_size=[int(side) for side in shape])

    def _deformed(
        self, parts: Sequence[torch.Tensor], grid: torch.Tensor | None, box: tuple[slice, ...] = (slice(None),)
    ) -> Sequence[torch.Tensor]:
        """Label, weight and images of one patch, deformed and then cut."""
        if grid is None:
            return [part[box] for part in parts]
        # Two parts may be all: then there are no images.
        modes = (["nearest"] * 2 + self._modes)[: len(parts)]
        moved: list[torch.Tensor] = list(parts)
        # Only the voxels of the box are interpolated, and at once for all parts that are interpolated alike.
        for mode in dict.fromkeys(modes):
            alike = [i for i, each in enumerate(modes) if each == mode]
            padding = "zeros" if mode == "nearest" else "border"
            stacked = torch.cat([convert_to_tensor(parts[i]).to(torch.float32) for i in alike])
            found = convert_to_tensor(self._resample(stacked, grid[box], mode, padding))
            for i, part in zip(alike, found.split([len(parts[i]) for i in alike])):
                moved[i] = part.to(parts[i].dtype)
        return moved

    def _draw_class(self, from_labeled: bool, own: Patch | None = None) -> int | None:
        available = self.bank.available(from_labeled, own)
        if not available.any():
            return None
        p = self.probabilities(from_labeled) * available
        return int(1 + self.R.choice(len(p), p=p / p.sum()))

    def __call__(  # type: ignore[override]  # MONAI's takes any data
        self,
        label: torch.Tensor,
        weight: torch.Tensor,
        *images: torch.Tensor,
        labeled: Sequence[bool],
        positions: torch.Tensor | None = None,
        num_mixed: int | None = None,
        modes: Sequence[str] | None = None,
        randomize: bool = True,
    ) -> tuple[torch.Tensor, ...]:
        """
        Args:
            label: ground truth or pseudo-labels, shape (B, 1, H, W[, D]).
            weight: weight of each voxel, same shape; a box around a class is never drawn around a voxel of weight 0.
            images: what is mixed along with them, each of shape (B, C, H, W[, D]).
            labeled: for each of the B patches, whether its label is ground truth.
            positions: offsets of the patches in their volumes, in voxels, shape (B, dims); needed for
                ``placement="anatomical"``.
            num_mixed: number M of mixed patches; ``None`` for the number of unlabeled ones.
            modes: for each of the images, how a deformation interpolates it: ``"bilinear"``, the default of all, which
                repeats the edge beyond a patch, or ``"nearest"``, which is 0 there.
            randomize: whether to draw anew, or to repeat the last draw.

        Returns:
            Label, weight and images of the mixed patches, (M, ...), in the order of the arguments. The inputs are left
            as they are.

        Raises:
            ValueError: When ``positions`` is needed and missing.
        """
        batches = (label, weight, *images)
        self._modes = ["bilinear"] * len(images) if modes is None else list(modes)
        if positions is None:
            if self.placement == "anatomical":
                raise ValueError(
                    "positions must be given for placement='anatomical' (PatchPositiond writes them), got None."
                )
            positions = torch.zeros(len(label), label.ndim - 2)
        positions = positions.cpu()
        if randomize:
            patches = list(zip(label, weight, positions, *images))
            self.add_donors(patches, labeled)
            count = sum(not value for value in labeled) if num_mixed is None else num_mixed
            self.randomize(labeled, positions, count, label.shape[2:])
        recipients = [recipe.recipient for recipe in self._recipes]
        mixed = tuple(batch[recipients] for batch in batches)
        for m, recipe in enumerate(self._recipes):
            if recipe.grid is not None:
                for batch, part in zip(mixed, self._deformed([batch[m] for batch in mixed], recipe.grid)):
                    batch[m] = part
            for paste in recipe.pastes:
                for batch, part in zip(mixed, paste.parts):
                    batch[m][paste.target] = part.to(batch.dtype)
        return mixed

    def state_dict(self) -> dict[str, Any]:
        """Progress, counts, random state and donors as plain numbers and tensors."""
        random_state = self.R.get_state(legacy=False)
        keys, position = random_state["state"]["key"], random_state["state"]["pos"]
        return {
            "progress": self.progress,
            "labeled_counts": self.labeled_counts.tolist(),
            "unlabeled_counts": self.unlabeled_counts.tolist(),
            "random_state": [
                torch.from_numpy(keys.astype(np.int64)),
                int(position),
                int(random_state["has_gauss"]),
                float(random_state["gauss"]),
            ],
            "bank": self.bank.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self.progress = float(state["progress"])
        self.labeled_counts = np.asarray(state["labeled_counts"], dtype=float)
        self.unlabeled_counts = np.asarray(state["unlabeled_counts"], dtype=float)
        keys, *rest = state["random_state"]
        self.R.set_state(("MT19937", keys.cpu().numpy().astype(np.uint32), *rest))
        self.bank.load_state_dict(state["bank"])


def _box(start: np.ndarray, sides: np.ndarray) -> tuple[slice, ...]:
    return slice(None), *(slice(int(a), int(a + n)) for a, n in zip(start, sides))
