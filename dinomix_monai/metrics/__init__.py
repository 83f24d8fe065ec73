"""Scores, their file and their comparison."""

from __future__ import annotations

from dinomix_monai.metrics.case_scores import CaseScores
from dinomix_monai.metrics.paired_statistics import holm, paired_interval, signed_rank_p
from dinomix_monai.metrics.run_comparison import compare_runs
from dinomix_monai.metrics.score_file import read_scores, write_scores
from dinomix_monai.metrics.score_rules import (
    GALossRule,
    Outcome,
    PublishedRule,
    SoundRule,
    chosen_rules,
    score_rule,
)

__all__ = [
    "CaseScores",
    "GALossRule",
    "Outcome",
    "PublishedRule",
    "SoundRule",
    "chosen_rules",
    "compare_runs",
    "holm",
    "paired_interval",
    "read_scores",
    "score_rule",
    "signed_rank_p",
    "write_scores",
]
