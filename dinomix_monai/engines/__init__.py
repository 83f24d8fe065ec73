"""The trainer and its parts."""

from __future__ import annotations

from dinomix_monai.engines.feature_distiller import FeatureDistiller
from dinomix_monai.engines.prepare_batch import PlainPrepareBatch
from dinomix_monai.engines.pseudo_labeler import PseudoLabeler
from dinomix_monai.engines.trainer import DinoMixTrainer
from dinomix_monai.engines.window_inferer import WindowInferer

__all__ = ["DinoMixTrainer", "FeatureDistiller", "PlainPrepareBatch", "PseudoLabeler", "WindowInferer"]
