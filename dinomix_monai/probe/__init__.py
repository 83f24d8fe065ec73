"""What a frozen teacher knows of the organs before any training: a linear probe of its tokens."""

from __future__ import annotations

from dinomix_monai.probe.dataset_probe import DatasetProbe, TeacherView, probe_dataset
from dinomix_monai.probe.intensities import Intensities
from dinomix_monai.probe.probe_table import ProbeTable

__all__ = ["DatasetProbe", "Intensities", "ProbeTable", "TeacherView", "probe_dataset"]
