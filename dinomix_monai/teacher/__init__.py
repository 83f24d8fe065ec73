"""The frozen teacher: loading DINOv3, saying which weights it has, and running it on slices of a volume."""

from __future__ import annotations

from dinomix_monai.teacher.dinov3 import DINOv3Teacher
from dinomix_monai.teacher.fingerprint import fingerprint
from dinomix_monai.teacher.slices import SliceTeacher, SliceTokens

__all__ = ["DINOv3Teacher", "SliceTeacher", "SliceTokens", "fingerprint"]
