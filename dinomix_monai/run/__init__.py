"""What surrounds a run: its log and configuration, and how it ends when it fails."""

from __future__ import annotations

from dinomix_monai.run.configuration import idle_settings, present_parser
from dinomix_monai.run.failure import Terminated, failure_text, report_failures, stop_on_sigterm
from dinomix_monai.run.record import start_run

__all__ = [
    "Terminated",
    "failure_text",
    "idle_settings",
    "present_parser",
    "report_failures",
    "start_run",
    "stop_on_sigterm",
]
