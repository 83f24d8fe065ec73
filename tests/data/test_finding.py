from __future__ import annotations

import pytest

from dinomix_monai.data import Finding, findings_table


def test_findings_are_in_columns():
    findings = [
        Finding("warning", "a.nii.gz", "is odd", "Look."),
        Finding("error", "images/b.nii.gz", "does not exist", "Put it there."),
    ]
    assert findings_table(findings).splitlines() == [
        "severity  file             problem and remedy",
        "warning   a.nii.gz         is odd. Look.",
        "error     images/b.nii.gz  does not exist. Put it there.",
    ]


def test_a_finding_cannot_be_changed():
    with pytest.raises(AttributeError):
        Finding("error", "a.nii", "does not exist", "Put it there.").severity = "warning"
