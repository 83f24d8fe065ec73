"""What is wrong with a data set, in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dinomix_monai.core.text import text_table

__all__ = ["Finding", "findings_table"]


@dataclass(frozen=True)
class Finding:
    """
    A problem of a data set.

    Args:
        severity: {``"error"``, ``"warning"``} whether training on it must not begin, or may.
        file: the file to look at.
        problem: what is wrong with it, as a phrase whose subject is the file.
        remedy: what to do about it, as a sentence.
    """

    severity: Literal["error", "warning"]
    file: str
    problem: str
    remedy: str


def findings_table(findings: Sequence[Finding]) -> str:
    """
    A line for each finding under a line of titles; problem and remedy share a column, because both are sentences.

    Example:
        >>> print(findings_table([Finding("error", "labels/a.nii.gz", "does not exist", "Put it there.")]))
        severity  file             problem and remedy
        error     labels/a.nii.gz  does not exist. Put it there.
    """
    rows = [("severity", "file", "problem and remedy")]
    rows += [(finding.severity, finding.file, f"{finding.problem}. {finding.remedy}") for finding in findings]
    return "\n".join(text_table(rows, is_of_numbers=False))
