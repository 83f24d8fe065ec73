"""Tokens on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import torch
from filelock import FileLock

from dinomix_monai.teacher.principal_components import PrincipalComponents

__all__ = ["TokenFiles", "sha256"]


class TokenFiles:
    """
    Tokens of volumes by the volumes' names: a file for each, in half precision, and their principal components.

    Every file is written in one move, so that what is there is complete. Several processes may share the folder.

    Args:
        folder: where the files are; made with the first of them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._reduced_folder = folder

    def lock(self) -> FileLock:
        """Held by whoever looks what is there in order to add it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / "lock")

    def number(self, name: str) -> int:
        """Number of a volume, from 1 on in the order in which they came; needs the lock."""
        file = self.folder / "volumes.json"
        names: list[str] = json.loads(file.read_text()) if file.is_file() else []
        if name not in names:
            names.append(name)
            with _in_one_move(file) as stream:
                stream.write(json.dumps(names).encode())
        return names.index(name) + 1

    def path(self, name: str) -> Path:
        """File with the tokens of a volume in full."""
        return self.folder / f"{name}.npy"

    def write(self, name: str, tokens: np.ndarray) -> None:
        """Keeps the tokens of a volume, shape (h, w, d, C)."""
        with _in_one_move(self.path(name)) as stream:
            np.save(stream, tokens)

    def read(self, name: str, k: int | None = None) -> np.ndarray:
        """Tokens of a volume in full, or, after :meth:`reduce`, its ``k`` components; mapped into memory."""
        folder = self.folder if k is None else self._reduced_folder
        # Copy on write: PyTorch warns of memory that it must not write to, and nobody writes.
        return np.load(folder / f"{name}.npy", mmap_mode="c")

    def reduce(self, names: Sequence[str], k: int) -> float:
        """
        Makes the first ``k`` principal components of these volumes, centered, unless they are there.

        Returns:
            Share of the variance that they keep.
        """
        names = sorted(names)
        folder = self.folder / f"{k}-components-{sha256(*(name.encode() for name in names))[:16]}"
        folder.mkdir(exist_ok=True)
        with FileLock(folder / "lock"):
            basis = folder / "components.npz"
            if not basis.is_file():
                self._fit(names, k, basis)
            with np.load(basis) as content:
                mean, directions, kept = (content[key] for key in ("mean", "directions", "kept"))
            for name in names:
                file = folder / f"{name}.npy"
                if not file.is_file():
                    with _in_one_move(file) as stream:
                        np.save(stream, ((self._full(name) - mean) @ directions).astype(np.float16))
        self._reduced_folder = folder
        return float(kept)

    def _fit(self, names: Sequence[str], k: int, basis: Path) -> None:
        components = PrincipalComponents(self._full(names[0]).shape[-1])
        for name in names:
            components.update(torch.from_numpy(self._full(name)).flatten(0, 2))
        mean, directions, kept = components.solve(k)
        with _in_one_move(basis) as stream:
            np.savez(stream, mean=mean.numpy(), directions=directions.numpy(), kept=kept)

    def _full(self, name: str) -> np.ndarray:
        return np.load(self.path(name), mmap_mode="r").astype(np.float32)


def sha256(*parts: bytes) -> str:
    """Digest of all parts, one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


@contextmanager
def _in_one_move(file: Path) -> Iterator[IO[bytes]]:
    partial = file.with_suffix(".partial")
    with partial.open("wb") as stream:
        yield stream
    partial.replace(file)
