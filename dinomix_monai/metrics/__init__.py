"""Scores and their tables."""

from __future__ import annotations

from dinomix_monai.metrics.case_scores import CaseScores

__all__ = ["CaseScores"]
