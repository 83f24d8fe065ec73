"""Files of tensors, opened with distrust."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_tensors", "read_tensor_file"]


def load_tensors(path: Path) -> Any:
    """
    What ``torch.save`` wrote, on the CPU; no code in it is run.

    Raises:
        Exception: Of any kind, as unpickling bytes that have been changed may raise whatever it likes; ``ValueError``
            for an archive that is packed, as ``torch.save`` does not: a small file could then fill the memory.
    """
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
            raise ValueError("a packed archive")
    return torch.load(path, map_location="cpu", weights_only=True)


def read_tensor_file(path: str | Path, name: str, what: str) -> dict[str, Any]:
    """
    What ``torch.save`` wrote of a dictionary of tensors, numbers, texts and containers of them; no code in it is run.

    Args:
        path: file to read, to the CPU.
        name: name of the argument, for the message.
        what: what the file must be, for the message.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is damaged, packed or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{name} must be {what}, got {path}, which does not exist.")
    try:
        content = load_tensors(path)
    except Exception as error:
        raise ValueError(
            f"{name} must be {what}, got {path}, which is damaged, incomplete or holds something else "
            f"({type(error).__name__}). Compare its size with the original, or make it anew."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{name} must be {what}, got {path} with a {type(content).__name__} of something else.")
    return content
