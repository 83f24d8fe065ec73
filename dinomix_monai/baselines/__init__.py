"""Methods that DINO-Mix is compared with and that need more than a config: CPS, and DHC on top of it."""

from __future__ import annotations

from dinomix_monai.baselines.cps import CrossTrainer, StudentPair
from dinomix_monai.baselines.dhc import ClassWeightedDiceCELoss, DifficultyWeighting, DistributionWeighting

__all__ = ["ClassWeightedDiceCELoss", "CrossTrainer", "DifficultyWeighting", "DistributionWeighting", "StudentPair"]
