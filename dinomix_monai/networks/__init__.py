"""Networks and what is attached to them."""

from __future__ import annotations

from dinomix_monai.networks.ema import EMATeacher
from dinomix_monai.networks.feature_tap import FeatureTap
from dinomix_monai.networks.linear_probe import LinearProbe
from dinomix_monai.networks.patch_check import check_patch_size
from dinomix_monai.networks.projection_head import ProjectionHead
from dinomix_monai.networks.vnet import VNet

__all__ = ["EMATeacher", "FeatureTap", "LinearProbe", "ProjectionHead", "VNet", "check_patch_size"]
