"""Which scans to label next."""

from __future__ import annotations

from dinomix_monai.selection.next_scans import next_scans
from dinomix_monai.selection.scan_order import NextScan, rank_scans
from dinomix_monai.selection.thumbnail import Thumbnails

__all__ = ["NextScan", "Thumbnails", "next_scans", "rank_scans"]
