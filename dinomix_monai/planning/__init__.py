"""The command ``configure``: settings for a data set, from what its scans are like."""

from __future__ import annotations

from dinomix_monai.planning.configuring import configure_training
from dinomix_monai.planning.dataset_plan import DatasetPlan, plan_dataset
from dinomix_monai.planning.fingerprint import DatasetFingerprint, take_fingerprint
from dinomix_monai.planning.memory import patch_budget

__all__ = [
    "DatasetFingerprint",
    "DatasetPlan",
    "configure_training",
    "patch_budget",
    "plan_dataset",
    "take_fingerprint",
]
