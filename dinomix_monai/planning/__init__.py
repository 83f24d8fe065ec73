"""Settings for a data set, from what its scans are like."""

from __future__ import annotations

from dinomix_monai.planning.dataset_plan import DatasetPlan, plan_dataset
from dinomix_monai.planning.fingerprint import DatasetFingerprint, take_fingerprint
from dinomix_monai.planning.memory import patch_budget
from dinomix_monai.planning.planned_settings import VALIDATIONS, PlannedSettings, means_the_same, print_plan

__all__ = [
    "VALIDATIONS",
    "DatasetFingerprint",
    "DatasetPlan",
    "PlannedSettings",
    "means_the_same",
    "patch_budget",
    "plan_dataset",
    "print_plan",
    "take_fingerprint",
]
