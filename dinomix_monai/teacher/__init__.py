"""The frozen teacher: loading DINOv3, saying which weights it has, running it on slices, keeping its tokens."""

from __future__ import annotations

from dinomix_monai.teacher.dinov3 import DINOv3Teacher
from dinomix_monai.teacher.fingerprint import fingerprint
from dinomix_monai.teacher.principal_components import PrincipalComponents
from dinomix_monai.teacher.slices import SliceTokens
from dinomix_monai.teacher.token_cache import TokenCache

__all__ = ["DINOv3Teacher", "PrincipalComponents", "SliceTokens", "TokenCache", "fingerprint"]
