"""Processes of this machine, found by what stands on their command line."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

__all__ = ["kill_processes"]


def kill_processes(is_meant: Callable[[list[str]], bool]) -> None:
    """Kills the processes whose words on the command line are meant, until none is left, but not this one."""
    while found := [number for number in _processes(is_meant) if number != os.getpid()]:
        for number in found:
            try:
                os.kill(number, signal.SIGKILL)
                os.waitpid(number, os.WNOHANG)
            except (ProcessLookupError, ChildProcessError):  # it has ended, or is no child
                pass


def _processes(is_meant: Callable[[list[str]], bool]) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if entry.name.isdigit() and is_meant(words):
            found.append(int(entry.name))
    return found
