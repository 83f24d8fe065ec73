"""FKD: foundational knowledge distillation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.transforms import Randomizable
from torch import nn
from torch.nn import functional as F

from dinomix_monai.losses import FeatureDistillationLoss
from dinomix_monai.networks import FeatureTap, ProjectionHead

__all__ = ["FeatureDistiller", "TaughtStudent"]

Layers = Sequence[Sequence[int] | None]
"""For each tapped module, the layers of the student's grid that are taught, or ``None`` for all."""


class FeatureDistiller(nn.Module, Randomizable):
    """
    Distils the features of a frozen teacher into those that a student computes anyway.

    Its parameters are the projection heads, which belong into the optimizer; the teacher is not part of its state dict.
    :class:`TaughtStudent` is the pass that gives projected features, and calling this compares them.

    Args:
        network: the student.
        modules: names of the modules whose outputs are taught; see :class:`dinomix_monai.networks.FeatureTap`.
        teacher: gives ``(B, C, h, w, k)`` features for a volume, the student's grid and ``k`` of its layers in depth,
            as :class:`dinomix_monai.teacher.SliceTokens` does, and has the attributes ``embed_dim`` and
            ``fingerprint``.
        patch_size: shape of a patch, from which the student's channels are found.
        in_channels: channels of the student's image.
        hidden_channels: see :class:`dinomix_monai.networks.ProjectionHead`.
        loss_function: distance between projected and teacher features in the cells of a mask; by default the plain form
            of :class:`dinomix_monai.losses.FeatureDistillationLoss`.
        layers: how many layers of the student's grid are drawn in each step, ``None`` for all. An online teacher's
            cost is proportional to it.
        interval: the loss is computed in every ``interval``-th step.

    Raises:
        ValueError: When ``layers`` or ``interval`` is less than 1.
    """

    def __init__(
        self,
        network: nn.Module,
        modules: Sequence[str],
        teacher: Any,
        patch_size: Sequence[int],
        in_channels: int = 1,
        hidden_channels: int | None = None,
        loss_function: nn.Module | None = None,
        layers: int | None = None,
        interval: int = 1,
    ) -> None:
        super().__init__()
        if interval < 1 or (layers is not None and layers < 1):
            raise ValueError(f"interval and layers must be >= 1, got {interval} and {layers}.")
        self.tap = FeatureTap(network, modules)
        device = next(network.parameters()).device
        features = self.tap.features_of(network, torch.zeros(1, in_channels, *patch_size, device=device))
        self.heads = nn.ModuleList(
            ProjectionHead(tapped.shape[1], teacher.embed_dim, hidden_channels) for tapped in features
        ).to(device)
        self.grids = [tuple(tapped.shape[2:]) for tapped in features]
        self.loss_function = FeatureDistillationLoss() if loss_function is None else loss_function
        self.layers, self.interval = layers, interval
        # Hidden from nn.Module: the teacher is neither trained nor saved.
        self._teacher = [teacher]

    @property
    def teacher(self) -> Any:
        """The frozen teacher."""
        return self._teacher[0]

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the frozen teacher, which stands for it in checkpoints."""
        return self.teacher.fingerprint

    def is_due(self, iteration: int) -> bool:
        """Whether the loss is computed in this step."""
        return iteration % self.interval == 0

    def draw_layers(self) -> Layers:
        """The layers that a step teaches, drawn for each of the modules."""
        depths = [grid[-1] for grid in self.grids]
        if self.layers is None:
            return [None] * len(depths)
        return [
            sorted(self.R.choice(depth, self.layers, replace=False).tolist()) if self.layers < depth else None
            for depth in depths
        ]

    def project(self, features: Sequence[torch.Tensor], size: int, layers: Layers) -> list[torch.Tensor]:
        """
        What the heads make of the student's features.

        Args:
            features: of each module, shape (B, C, h, w, d).
            size: so many samples, the first ones, are taught.
            layers: see :meth:`draw_layers`.

        Returns:
            For each module, shape (size, E, h, w, k).
        """
        cut = [each[:size] if drawn is None else each[:size][..., drawn] for each, drawn in zip(features, layers)]
        return [head(each) for head, each in zip(self.heads, cut)]

    def forward(self, projected: Sequence[torch.Tensor], volume: torch.Tensor, layers: Layers) -> torch.Tensor:
        """
        Args:
            projected: what :meth:`project` gave.
            volume: what the teacher sees of the same samples, shape (B, C, H, W, D), values in [0, 1].
            layers: those of the projected features.

        Returns:
            Loss, a scalar; the mean over the tapped modules.
        """
        losses = []
        for features, grid, drawn in zip(projected, self.grids, layers):
            teacher_features = self.teacher(volume, grid, drawn).to(features.device)
            # Cells of which the teacher knows nothing are 0 in all channels.
            losses.append(self.loss_function(features, teacher_features, teacher_features.any(dim=1)))
        return torch.stack(losses).mean()

    @torch.no_grad()
    def agreement(
        self, network: nn.Module, image: torch.Tensor, volume: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        What teacher and student say of an image, at the first of the modules and in evaluation mode.

        Args:
            network: the student.
            image: its input, shape (B, C, H, W, D).
            volume: what the teacher sees of it, as in :meth:`forward`.

        Returns:
            Teacher features, shape (B, E, h, w, d), and their cosine with the student's projected ones, (B, h, w, d).
        """
        features = self.tap.features_of(network, image)[0]
        teacher_features = self.teacher(volume, tuple(features.shape[2:])).to(features.device)
        return teacher_features, F.cosine_similarity(self.heads[0](features), teacher_features, dim=1)


class TaughtStudent(nn.Module):
    """
    A student and its projection heads as one module, which is what ``DistributedDataParallel`` has to wrap.

    The student itself stays as it is, and alone is saved, served and sent to a server.

    Args:
        network: the student.
        distiller: has the heads, or ``None`` for a student that nobody teaches.
    """

    def __init__(self, network: nn.Module, distiller: FeatureDistiller | None = None) -> None:
        super().__init__()
        self.network, self.distiller = network, distiller

    def forward(self, image: torch.Tensor, size: int = 0, layers: Layers = ()) -> tuple[Any, list[torch.Tensor]]:
        """
        Args:
            image: input of the student, shape (B, C, H, W[, D]).
            size: so many samples, the first ones, are taught; features are collected only where there are any.
            layers: see :meth:`FeatureDistiller.draw_layers`.

        Returns:
            The student's output, and the projected features of each tapped module, see
            :meth:`FeatureDistiller.project`.
        """
        if self.distiller is None or not size:
            return self.network(image), []
        output, features = self.distiller.tap(image)
        return output, self.distiller.project(features, size, layers)
