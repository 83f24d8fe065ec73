"""Loss functions: stateless, without weights of their own and without schedules."""

from __future__ import annotations

from dinomix_monai.losses.feature_distillation import (
    FeatureDistillationLoss,
    semantic_rarity,
    semantic_uniqueness,
)
from dinomix_monai.losses.soft_dice import soft_dice
from dinomix_monai.losses.weighted_dice_ce import VoxelWeightedDiceCELoss

__all__ = [
    "FeatureDistillationLoss",
    "VoxelWeightedDiceCELoss",
    "semantic_rarity",
    "semantic_uniqueness",
    "soft_dice",
]
