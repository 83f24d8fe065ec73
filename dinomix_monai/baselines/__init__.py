"""Methods that DINO-Mix is compared with and that need more than a config: CPS, DHC on top of it, self-training."""

from __future__ import annotations

from dinomix_monai.baselines.cps import CrossTrainer, StudentPair
from dinomix_monai.baselines.dhc import ClassWeightedDiceCELoss, DifficultyWeighting, DistributionWeighting
from dinomix_monai.baselines.self_training import label_cases

__all__ = [
    "ClassWeightedDiceCELoss",
    "CrossTrainer",
    "DifficultyWeighting",
    "DistributionWeighting",
    "StudentPair",
    "label_cases",
]
