"""What server and sites share."""

from __future__ import annotations

from dinomix_monai.federated.protocol.bundle_network import bundle_network, config_files, find_bundle
from dinomix_monai.federated.protocol.messages import MetaKeys, Models, Tasks
from dinomix_monai.federated.protocol.run_plan import TRANSFERS, VOXELS, RunPlan

__all__ = [
    "TRANSFERS",
    "VOXELS",
    "MetaKeys",
    "Models",
    "RunPlan",
    "Tasks",
    "bundle_network",
    "config_files",
    "find_bundle",
]
