"""What draws and writes the report of a run: its page, its charts and its pictures of cases and of the teacher."""

from __future__ import annotations

from dinomix_monai.report.pictures import class_colors
from dinomix_monai.report.provenance import read_run
from dinomix_monai.report.report import ReportHandler
from dinomix_monai.report.slice_overlays import SliceOverlays
from dinomix_monai.report.teacher_view import TeacherViewHandler

__all__ = ["ReportHandler", "SliceOverlays", "TeacherViewHandler", "class_colors", "read_run"]
