"""Tokens on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from dinomix_monai.core.files import atomic_write
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

    def lock(self, name: str = "volumes") -> FileLock:
        """Held by whoever looks what is there in order to add it: the list of volumes, tokens of one, or components."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / f"{name}.lock")

    def numbers(self, names: Sequence[str]) -> dict[str, int]:
        """Numbers of these volumes, from 1 on; those that have none get the next ones in this order."""
        file = self.folder / "volumes.json"
        with self.lock():
            listed: list[str] = json.loads(file.read_text()) if file.is_file() else []
            known = set(listed)
            if new := [name for name in names if name not in known]:
                listed += new
                with atomic_write(file) as stream:
                    stream.write(json.dumps(listed).encode())
        numbers = {name: number for number, name in enumerate(listed, 1)}
        return {name: numbers[name] for name in names}

    def path(self, name: str) -> Path:
        """File with the tokens of a volume in full."""
        return self.folder / f"{name}.npy"

    def write(self, name: str, tokens: np.ndarray) -> None:
        """Keeps the tokens of a volume, shape (h, w, d, C)."""
        with atomic_write(self.path(name)) as stream:
            np.save(stream, tokens)

    def read(self, name: str, is_reduced: bool = False) -> torch.Tensor:
        """
        Tokens of a volume in full or, after :meth:`open_components`, reduced to these, shape (h, w, d, C).

        They are mapped into memory; no file stays open, of which a process may have a thousand.
        """
        file = self.path(name)
        if is_reduced:
            file = self._reduced_folder / f"{name}.npy"
            with self.lock(name):
                if not file.is_file():
                    self._reduce(name, file)
        header = np.load(file, mmap_mode="r")
        # NumPy's map would keep the file open.
        content = torch.from_file(str(file), shared=False, size=file.stat().st_size, dtype=torch.uint8)
        return content[header.offset :].view(torch.float16).view(header.shape)

    def open_components(self, names: Sequence[str], sample: Sequence[str], k: int) -> float:
        """
        Finds the components that the tokens of these volumes are reduced to, unless they are there.

        Args:
            names: volumes, sorted.
            sample: those of them whose tokens have ``k`` principal components that are found; they depend on ``names``.
            k: number of components.

        Returns:
            Share of the variance of the sample that they keep.
        """
        self._reduced_folder = self.folder / f"{k}-components-{sha256(*(name.encode() for name in names))[:16]}"
        self._reduced_folder.mkdir(exist_ok=True)
        with self.lock(self._reduced_folder.name):
            if not self._basis.is_file():
                self._fit(sample, k)
        with np.load(self._basis) as content:
            return float(content["kept"])

    @property
    def _basis(self) -> Path:
        return self._reduced_folder / "components.npz"

    def _fit(self, names: Sequence[str], k: int) -> None:
        components = PrincipalComponents(self.read(names[0]).shape[-1])
        for name in names:
            components.update(self.read(name).flatten(0, 2))
        mean, directions, kept = components.solve(k)
        with atomic_write(self._basis) as stream:
            np.savez(stream, mean=mean.numpy(), directions=directions.numpy(), kept=kept)

    def _reduce(self, name: str, file: Path) -> None:
        with np.load(self._basis) as content:
            mean, directions = content["mean"], content["directions"]
        tokens = self.read(name)
        reduced = np.empty((*tokens.shape[:3], directions.shape[1]), dtype=np.float16)
        # Layer by layer, because in single precision all of them may not fit into memory.
        for number, layer in enumerate(tokens):
            reduced[number] = (layer.float().numpy() - mean) @ directions
        with atomic_write(file) as stream:
            np.save(stream, reduced)


def sha256(*parts: bytes | memoryview) -> str:
    """Digest of all parts, one after another."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
