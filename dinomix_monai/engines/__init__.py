"""The trainers and their parts."""

from __future__ import annotations

from dinomix_monai.engines.class_weighting import DifficultyWeighting, DistributionWeighting
from dinomix_monai.engines.cross_trainer import CrossTrainer
from dinomix_monai.engines.feature_distiller import FeatureDistiller
from dinomix_monai.engines.prepare_batch import PlainPrepareBatch
from dinomix_monai.engines.pseudo_labeler import PseudoLabeler
from dinomix_monai.engines.semi_supervised_trainer import SemiSupervisedTrainer
from dinomix_monai.engines.trainer import DinoMixTrainer
from dinomix_monai.engines.training_plan import TrainingPlan, plan_training
from dinomix_monai.engines.window_inferer import WindowInferer

__all__ = [
    "CrossTrainer",
    "DifficultyWeighting",
    "DinoMixTrainer",
    "DistributionWeighting",
    "FeatureDistiller",
    "PlainPrepareBatch",
    "PseudoLabeler",
    "SemiSupervisedTrainer",
    "TrainingPlan",
    "WindowInferer",
    "plan_training",
]
