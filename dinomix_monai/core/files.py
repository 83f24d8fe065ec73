"""Files that are there as a whole or not at all, and what an earlier run left in their place."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from io import BufferedWriter
from pathlib import Path
from typing import Any

__all__ = ["atomic_write", "check_writable", "set_aside", "write_json", "writing_to"]


@contextlib.contextmanager
def atomic_write(path: str | Path, is_shared: bool = False) -> Iterator[BufferedWriter]:
    """
    Opens a file that gets its name when the block has ended well: there is the old file or the whole new one.

    Args:
        path: file to write; its folder is made if it is not there.
        is_shared: whether several processes may write it at once; the last one to end has its way.

    Raises:
        OSError: When it cannot be written, as on a full disk.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial" if is_shared else f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{path} must be a file that can be written to, got: {error.strerror or error}. What was there before is "
            "unchanged.",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


@contextlib.contextmanager
def writing_to(folder: str | Path, name: str = "output_dir") -> Iterator[None]:
    """
    Around the first writing to a folder: where that fails, the error names the argument and the way out.

    Args:
        folder: the folder, for the message.
        name: the argument that names it.

    Raises:
        OSError: When it cannot be written to.
    """
    try:
        yield
    except OSError as error:
        number = errno.ENOTDIR if isinstance(error, FileExistsError) else error.errno or errno.EIO
        raise OSError(
            number,
            f"{name} must be a folder that can be written to, got {folder} ({os.strerror(number)}). Pass another by "
            f"--{name}.",
        ) from error


def check_writable(folder: str | Path, name: str = "output_dir") -> None:
    """
    Makes a folder if it is not there and tries to write to it, before time is spent on what it is for.

    Args:
        folder: see :func:`writing_to`.
        name: see :func:`writing_to`.

    Raises:
        OSError: When it cannot be written to.
    """
    with writing_to(folder, name):
        Path(folder).mkdir(parents=True, exist_ok=True)
        # Asking for permission is not enough: a file system that is mounted read-only gives it.
        tempfile.TemporaryFile(dir=folder).close()


def write_json(path: str | Path, content: Any, is_shared: bool = False) -> Path:
    """
    Writes plain values as JSON, as :func:`atomic_write` writes.

    Args:
        path: file to write.
        content: numbers, texts and containers of them; of anything else its text.
        is_shared: see :func:`atomic_write`.
    """
    with atomic_write(path, is_shared) as file:
        file.write((json.dumps(content, indent=1, default=str) + "\n").encode())
    return Path(path)


def set_aside(path: Path) -> None:
    """
    Renames a file of an earlier run to ``*.previous.*``: whoever forgot to resume that run should not have lost it.

    Nothing happens where there is no such file. The log says what was renamed.

    Args:
        path: file that the present run is about to write.
    """
    if path.is_file():
        kept = path.with_name(f"{path.stem}.previous{path.suffix}")
        path.replace(kept)
        logging.getLogger(__name__).warning("%s was there from an earlier run and is now %s.", path, kept.name)
