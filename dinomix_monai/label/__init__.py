"""MONAI Label: annotators label a few scans, and the model learns from all of them."""

from __future__ import annotations

from dinomix_monai.label.app_folder import AppFolder, prepare_app_folder
from dinomix_monai.label.refusal import Refusal
from dinomix_monai.label.server import check_server, connections, serve
from dinomix_monai.label.training_run import TrainingRun

# The app and its tasks are imported from their modules, since they need MONAI Label.
__all__ = [
    "AppFolder",
    "Refusal",
    "TrainingRun",
    "check_server",
    "connections",
    "prepare_app_folder",
    "serve",
]
