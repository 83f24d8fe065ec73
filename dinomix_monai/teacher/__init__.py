"""The frozen teacher: a foundation model, which weights it has, its tokens of slices and where they are kept."""

from __future__ import annotations

from dinomix_monai.teacher.fingerprint import fingerprint
from dinomix_monai.teacher.foundation_teacher import FoundationTeacher, MissingWeightsError
from dinomix_monai.teacher.principal_components import PrincipalComponents
from dinomix_monai.teacher.slices import SliceTokens
from dinomix_monai.teacher.token_cache import TokenCache

__all__ = [
    "FoundationTeacher",
    "MissingWeightsError",
    "PrincipalComponents",
    "SliceTokens",
    "TokenCache",
    "fingerprint",
]
