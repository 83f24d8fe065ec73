"""Files that are no volumes."""

from __future__ import annotations

import os

__all__ = ["VolumeError"]


class VolumeError(ValueError):
    """
    A file that is no volume to work with.

    Args:
        problem: what is wrong, as a phrase whose subject is the file.
        remedy: what to do about it, as a sentence.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.problem = problem
        self.remedy = remedy

    def of(self, path: str | os.PathLike) -> ValueError:
        """An error that names the file."""
        return ValueError(f"Volumes must be NIfTI of one volume, got {path}, which {self.problem}. {self.remedy}")
