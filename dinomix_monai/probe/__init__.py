"""What a frozen teacher knows of the organs before any training: a linear probe of its tokens."""

from __future__ import annotations

from dinomix_monai.probe.dataset_probe import DatasetProbe, TeacherView, probe_dataset
from dinomix_monai.probe.organ_probe import (
    LabeledPoints,
    OrganProbe,
    ProbeTable,
    cross_validated_dice,
    gather_points,
    point_dice,
)
from dinomix_monai.probe.point_features import PointFeatures, labels_at_points

__all__ = [
    "DatasetProbe",
    "LabeledPoints",
    "OrganProbe",
    "PointFeatures",
    "ProbeTable",
    "TeacherView",
    "cross_validated_dice",
    "gather_points",
    "labels_at_points",
    "point_dice",
    "probe_dataset",
]
