"""PIC: progressive imbalance-aware CutMix of a batch, on arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.transforms import RandAffineGrid, Randomizable, Transform

from dinomix_monai.core.processes import gather_over_processes
from dinomix_monai.transforms.donor_bank import DonorBank, Patch
from dinomix_monai.transforms.pic_curriculum import ClassCurriculum
from dinomix_monai.transforms.pic_recipe import MixRecipe, apply_recipes
from dinomix_monai.transforms.pic_sampler import RecipeSampler, Recipient

__all__ = ["PICCutMix"]


class PICCutMix(Randomizable, Transform):
    """
    Pastes boxes around organs from labeled and unlabeled patches into labeled and unlabeled patches; takes a batch.

    For each mixed patch a direction is drawn. For each of its boxes a class is drawn from the probabilities of
    :func:`class_probabilities`, then a donor that contains the class (by ground truth or by pseudo-label, from this
    batch or from the bank of recent ones, and never the recipient itself), and then a box around a random voxel of the
    class. Image, label and weight change at the same voxels, and the box keeps its place in the patch or in the body.
    Donors and recipients may be deformed first. Some boxes are placed blindly instead, as in plain CutMix: for classes
    of similar size blind boxes are better, so by default their share is what the imbalance of the labeled voxels
    leaves.

    Drawing and applying are apart: what was drawn is kept in ``recipes``, and :func:`apply_recipes` makes the mixed
    patches of them, as often as one likes and without a random number. All draws come from ``self.R``.

    Reference: Liu and Sun, "DINO-Mix", 2026, https://arxiv.org/abs/2602.07819. The boxes are those of Yun et al.,
    "CutMix", ICCV 2019.

    Args:
        labeled_counts: number of voxels of each class over the labeled set, background first; it sets the number of
            classes.
        directions: relative frequency of each of :data:`DIRECTIONS`; one that is left out does not occur. ``None`` for
            all of them, equally frequent.
        prob: probability that a mixed patch gets boxes at all.
        num_boxes: number of boxes of each mixed patch that gets any.
        box_fraction: least and greatest side of a box as a fraction of the patch, drawn for each axis.
        placement: {``"same"``, ``"anatomical"``} a box keeps its place in the patch, as in CutMix, or its place in the
            body: it is moved by the difference of the patches' positions, and organs that would come to lie outside of
            the recipient are not drawn.
        affine_grid: deforms every donor before a box is cut from it and every recipient before boxes are pasted, so
            that organs come in more sizes and poses than those of the few labeled patients; what it brings in from
            beyond a patch has weight 0. ``None`` to mix patches as they are. It draws from this transform's random
            state.
        blind_share: share of blind boxes in [0, 1]; ``None`` for ``1 - imbalance(labeled_counts[1:])``.
        beta: see :func:`class_probabilities`.
        curriculum: see :func:`class_probabilities`.
        gamma: see :func:`class_probabilities`.
        bank_size: number of patches that the donor bank keeps for each class and origin.
        count_decay: decay of the moving average of the pseudo-labeled voxels of each class.

    Attributes:
        class_curriculum: voxel counts of the classes, progress of the training, and the class probabilities.
        bank: donors of the recent batches.
        sampler: draws the recipes.
        recipes: what the last call drew, one recipe for each mixed patch.

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
        self.class_curriculum = ClassCurriculum(labeled_counts, beta, curriculum, gamma, count_decay)
        self.bank = DonorBank(self.class_curriculum.num_classes, bank_size)
        self.sampler = RecipeSampler(
            self.bank,
            self.class_curriculum,
            directions=directions,
            prob=prob,
            num_boxes=num_boxes,
            box_fraction=box_fraction,
            placement=placement,
            affine_grid=affine_grid,
            blind_share=blind_share,
        )
        self.recipes: tuple[MixRecipe, ...] = ()

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> PICCutMix:
        """See :meth:`monai.transforms.Randomizable.set_random_state`."""
        super().set_random_state(seed, state)
        self.sampler.set_random_state(state=self.R)
        return self

    @property
    def progress(self) -> float:
        """
        Progress of the training in [0, 1], from which the class probabilities follow.

        It is set from outside, as :class:`dinomix_monai.handlers.CurriculumHandler` does.
        """
        return self.class_curriculum.progress

    @progress.setter
    def progress(self, value: float) -> None:
        self.class_curriculum.progress = value

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
        Takes the patches of a batch into the donor bank, draws recipes and applies them.

        Args:
            label: ground truth or pseudo-labels, shape (B, 1, H, W[, D]).
            weight: weight of each voxel, same shape; a box around a class is never drawn around a voxel of weight 0.
            images: what is mixed along with them, each of shape (B, C, H, W[, D]).
            labeled: for each of the B patches, whether its label is ground truth.
            positions: offsets of the patches in their volumes, in voxels, shape (B, dims); needed to draw with
                ``placement="anatomical"``.
            num_mixed: number M of mixed patches; ``None`` for the number of unlabeled ones.
            modes: see :func:`apply_recipes`.
            randomize: whether to draw anew; ``False`` to apply the recipes of the last call, which neither draws nor
                changes the donor bank.

        Returns:
            Label, weight and images of the mixed patches, (M, C, H, W[, D]), in the order of the arguments. The inputs
            are left as they are.

        Raises:
            ValueError: When ``positions`` is needed and missing, and where :func:`apply_recipes` raises it.
        """
        if randomize:
            positions = self._positions_on_cpu(label, positions)
            own_donors = self.add_donors(list(zip(label, weight, positions, *images)), labeled)
            recipients = [
                Recipient(bool(is_labeled), position, own_donor)
                for is_labeled, position, own_donor in zip(labeled, positions, own_donors)
            ]
            if num_mixed is None:
                num_mixed = sum(not recipient.labeled for recipient in recipients)
            self.recipes = self.sampler(recipients, label.shape[2:], num_mixed)
        return apply_recipes((label, weight, *images), self.recipes, modes)

    def _positions_on_cpu(self, label: torch.Tensor, positions: torch.Tensor | None) -> torch.Tensor:
        if positions is not None:
            return positions.cpu()
        if self.sampler.placement == "anatomical":
            raise ValueError(
                "positions must be given for placement='anatomical' (PatchPositiond writes them), got None. Pass them, "
                "or placement='same'."
            )
        return torch.zeros(len(label), label.ndim - 2)

    def add_donors(self, patches: Sequence[Patch], labeled: Sequence[bool]) -> list[Patch | None]:
        """
        Puts patches into the donor bank and counts their pseudo-labeled voxels.

        A patch with a voxel that is not finite is neither kept nor counted. Under ``torch.distributed`` voxels are
        counted over all processes, in the order of ranks, while every bank has the patches of its own process. All
        processes must add the same number of unlabeled patches.

        Args:
            patches: label, weight, position and images of each, without a batch axis.
            labeled: for each of them, whether its label is ground truth.

        Returns:
            For each patch its copy in the bank; ``None`` where it is not kept.
        """
        # Read at once, because each reading waits for a GPU.
        counts = torch.stack([self._confident_voxels(patch) for patch in patches])
        donors: list[Patch | None] = []
        for (label, *rest), voxels, is_labeled in zip(patches, counts.cpu().numpy(), labeled):
            # A patch that is not finite would spoil other steps, too.
            classes = voxels.nonzero()[0].tolist() if (voxels >= 0).all() else []
            # Classes are few; in the dtype that they come in they may take twice the memory of an image.
            donors.append(self.bank.add((label.to(torch.int16), *rest), classes, is_labeled))
        unlabeled = [number for number, is_labeled in enumerate(labeled) if not is_labeled]
        if unlabeled:
            for voxels in gather_over_processes(counts[unlabeled]).cpu().numpy():
                if (voxels >= 0).all():
                    self.class_curriculum.count_unlabeled_patch(voxels)
        return donors

    def _confident_voxels(self, patch: Patch) -> torch.Tensor:
        """Number of voxels of each class that have a weight, shape (num_classes,); all -1 in a patch not finite."""
        label, weight, _, *images = patch
        voxels = torch.zeros(self.class_curriculum.num_classes, dtype=torch.long, device=label.device)
        voxels.scatter_add_(0, label.flatten().long(), (weight > 0).flatten().long())
        # A sum is finite where all is, and takes a fraction of the time.
        is_finite = torch.stack([part.sum().isfinite() for part in (weight, *images)]).all()
        return torch.where(is_finite, voxels, -1)

    def state_dict(self) -> dict[str, Any]:
        """
        Progress, counts and donors as plain numbers and tensors.

        The random state is none of it: :class:`dinomix_monai.handlers.EpochSeedHandler` seeds the transform at the
        start of each epoch, so a run that is resumed there draws what the uninterrupted run draws.
        """
        return {**self.class_curriculum.state_dict(), "bank": self.bank.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Restores what :meth:`state_dict` gave.

        Raises:
            ValueError: When ``state`` is of a transform with another number of classes.
        """
        self.class_curriculum.load_state_dict(state)
        self.bank.load_state_dict(state["bank"])
