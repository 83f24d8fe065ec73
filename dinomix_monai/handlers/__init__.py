"""Ignite handlers of a training, one duty each."""

from __future__ import annotations

from dinomix_monai.handlers.best_model import BestModelHandler, LastModelHandler
from dinomix_monai.handlers.ema import EMAUpdateHandler
from dinomix_monai.handlers.gradients import ClipGradientHandler
from dinomix_monai.handlers.mix_history import MixHistoryHandler
from dinomix_monai.handlers.patience import PatienceHandler
from dinomix_monai.handlers.progress import HistoryHandler, ProgressLineHandler
from dinomix_monai.handlers.random_state import EpochSeedHandler
from dinomix_monai.handlers.run_state import RunStateLoader, RunStateSaver
from dinomix_monai.handlers.schedules import CurriculumHandler, RampUpHandler, fast_forward_scheduler
from dinomix_monai.handlers.validation_dice import ValidationDice

__all__ = [
    "BestModelHandler",
    "ClipGradientHandler",
    "CurriculumHandler",
    "EMAUpdateHandler",
    "EpochSeedHandler",
    "HistoryHandler",
    "LastModelHandler",
    "MixHistoryHandler",
    "PatienceHandler",
    "ProgressLineHandler",
    "RampUpHandler",
    "RunStateLoader",
    "RunStateSaver",
    "ValidationDice",
    "fast_forward_scheduler",
]
