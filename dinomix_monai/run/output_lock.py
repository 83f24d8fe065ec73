"""One run at a time in a folder of outputs."""

from __future__ import annotations

import logging
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["acquire_lock", "lock_outputs"]

logger = logging.getLogger(__name__)

_held: list[FileLock] = []


def lock_outputs(output_dir: str | Path, logs: Path) -> None:
    """
    Keeps a folder of outputs for the run that begins in this process.

    Two runs in one folder would replace each other's models, and both would end well. The lock goes with the process,
    however that ends, or with the next run that begins in it.

    Args:
        output_dir: the folder, for the message.
        logs: folder of its logs, which is there.

    Raises:
        ValueError: When another process has a run in it.
        OSError: When the folder cannot be written to.
    """
    while _held:
        _held.pop().release()
    lock = acquire_lock(logs)
    if lock is None:
        latest = max(logs.glob("*.log"), key=lambda log: log.stat().st_mtime, default=logs)
        raise ValueError(
            f"output_dir must be a folder that no other run writes to, got {output_dir}, where one is at work "
            f"({latest}). Pass another, or wait for its end."
        )
    _held.append(lock)


def acquire_lock(folder: Path) -> FileLock | None:
    """
    A lock on a folder, which it stays as long as somebody keeps the object; ``None`` where another process has it.

    Where a file system knows no locks, the log says so, and the object holds nothing.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        return None
    except NotImplementedError:
        logger.warning("%s is on a file system without locks: let no other process write to it.", folder)
    return lock
