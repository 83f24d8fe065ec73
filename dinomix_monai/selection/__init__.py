"""Which scans to label next, by what they look like."""

from __future__ import annotations

from dinomix_monai.selection.next_scans import NextScan, next_scans, rank_scans, scan_looker
from dinomix_monai.selection.scan_look import ScanLooker
from dinomix_monai.selection.scan_order import ScanChoice, choose_scans

__all__ = [
    "NextScan",
    "ScanChoice",
    "ScanLooker",
    "choose_scans",
    "next_scans",
    "rank_scans",
    "scan_looker",
]
