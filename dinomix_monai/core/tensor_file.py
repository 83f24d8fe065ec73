"""Files of tensors: opened with distrust, written in one move."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dinomix_monai.core.files import atomic_write

__all__ = ["differing_names", "load_tensors", "read_tensor_file", "shape_difference", "write_tensor_file"]


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


def write_tensor_file(content: Any, path: str | Path) -> Path:
    """
    Writes what ``torch.save`` takes in one move: there is the old file or the whole new one, whatever happens.

    Args:
        content: tensors, numbers, texts and containers of them.
        path: file to write; its folder is made if it is not there.

    Returns:
        ``path``.

    Raises:
        OSError: When it cannot be written, as on a full disk.
    """
    with atomic_write(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            # What interrupts it, as a full disk or a signal, it hides behind an error over the rest of its archive.
            reason = error.__context__
            if reason is None or isinstance(reason, RuntimeError):
                raise
            raise reason from None
    return Path(path)


def differing_names(found: Mapping[str, Any], expected: Mapping[str, Any]) -> list[str]:
    """Names that only one of two mappings has, or under which they have unequal values; those of ``expected`` first."""
    return [
        name
        for name in {**expected, **found}
        if name not in found or name not in expected or found[name] != expected[name]
    ]


def shape_difference(weights: Mapping[str, Any], needed: Mapping[str, Any]) -> str | None:
    """
    The first tensor that two state dicts do not share, as a phrase; ``None`` where all names and shapes are the same.

    Args:
        weights: state dict that came; what is no tensor in it differs.
        needed: state dict of the network.
    """
    found, expected = ({name: _shape(value) for name, value in state.items()} for state in (weights, needed))
    different = differing_names(found, expected)
    if not different:
        return None
    name = min(different)
    return f"{name} has the shape {found.get(name)} and not {expected.get(name)}"


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
