"""Where a result comes from: command, versions and machine."""

from __future__ import annotations

import json
import platform
import shlex
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from dinomix_monai.run.versions import package_version

__all__ = ["RUN_FILE", "provenance", "read_run"]

# What a report writes down of its run, for programs; it lies beside the scores.
RUN_FILE = "run.json"

_PACKAGES = ("dinomix-monai", "monai", "torch", "pytorch-ignite", "timm", "numpy")


def provenance() -> dict[str, str]:
    """Command, versions and machine of this process and the present time, by name."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"
    machine = f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads{gpu}"
    versions = [
        f"Python {platform.python_version()}",
        *(f"{name} {package_version(name, 'from source')}" for name in _PACKAGES),
    ]
    return {
        "command": shlex.join(sys.orig_argv),
        "versions": ", ".join(versions),
        "machine": machine,
        "finished": datetime.now().astimezone().isoformat(sep=" ", timespec="seconds"),
    }


def read_run(path: str | Path) -> dict[str, Any] | None:
    """What a report has written to ``run.json`` about its run; ``None`` where there is no such file."""
    return json.loads(Path(path).read_text(encoding="utf-8")) if Path(path).is_file() else None
