"""What surrounds a run: its log and configuration, and how it ends when it fails."""

from __future__ import annotations

from dinomix_monai.run.command_line import run_command_line
from dinomix_monai.run.configuration import (
    bundle_root,
    check_paths,
    check_settings,
    folder_above_configs,
    output_folder,
    present_parser,
    read_configuration,
    unused_settings,
)
from dinomix_monai.run.failure import failure_text, report_failures, stop_on_sigterm
from dinomix_monai.run.output_lock import acquire_lock
from dinomix_monai.run.port import check_port
from dinomix_monai.run.record import start_run
from dinomix_monai.run.settings import check_counts, check_device
from dinomix_monai.run.versions import describe_versions

__all__ = [
    "acquire_lock",
    "bundle_root",
    "check_counts",
    "check_device",
    "check_paths",
    "check_port",
    "check_settings",
    "describe_versions",
    "failure_text",
    "folder_above_configs",
    "output_folder",
    "present_parser",
    "read_configuration",
    "report_failures",
    "run_command_line",
    "start_run",
    "stop_on_sigterm",
    "unused_settings",
]
