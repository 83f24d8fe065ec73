"""Loss functions: stateless, without weights of their own and without schedules."""

from __future__ import annotations

from dinomix_monai.losses.class_weighted_dice_ce import ClassWeightedDiceCELoss
from dinomix_monai.losses.feature_distillation import (
    FeatureDistillationLoss,
    semantic_rarity,
    semantic_uniqueness,
)
from dinomix_monai.losses.weighted_dice_ce import VoxelWeightedDiceCELoss

__all__ = [
    "ClassWeightedDiceCELoss",
    "FeatureDistillationLoss",
    "VoxelWeightedDiceCELoss",
    "semantic_rarity",
    "semantic_uniqueness",
]
