"""MONAI Label: annotators label a few scans, and the model learns from all of them."""

from __future__ import annotations

from dinomix_monai.label.app_folder import AppFolder, prepare_app_folder
from dinomix_monai.label.refusal import Refusal
from dinomix_monai.label.server import check_server, connections, serve
from dinomix_monai.label.training_run import TrainingResult, TrainingRun, latest_progress

# The app and its tasks are imported from their modules, since they need MONAI Label.
__all__ = [
    "AppFolder",
    "Refusal",
    "TrainingResult",
    "TrainingRun",
    "check_server",
    "connections",
    "latest_progress",
    "prepare_app_folder",
    "serve",
]
