"""Ignite handlers, one duty each."""

from __future__ import annotations

from dinomix_monai.handlers.checkpoint import BestModelHandler, LastModelHandler, RunStateLoader, RunStateSaver
from dinomix_monai.handlers.ema import EMAUpdateHandler
from dinomix_monai.handlers.gradients import ClipGradientHandler
from dinomix_monai.handlers.mix_history import MixHistoryHandler
from dinomix_monai.handlers.patience import PatienceHandler
from dinomix_monai.handlers.progress import HistoryHandler, ProgressLineHandler
from dinomix_monai.handlers.provenance import provenance, read_run
from dinomix_monai.handlers.random_state import EpochSeedHandler
from dinomix_monai.handlers.report import ReportHandler
from dinomix_monai.handlers.schedules import CurriculumHandler, RampUpHandler, fast_forward_scheduler
from dinomix_monai.handlers.teacher_view import TeacherViewHandler
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
    "ReportHandler",
    "RunStateLoader",
    "RunStateSaver",
    "TeacherViewHandler",
    "ValidationDice",
    "fast_forward_scheduler",
    "provenance",
    "read_run",
]
