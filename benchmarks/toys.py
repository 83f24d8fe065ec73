"""The bundle and its phantom, shrunk until a step takes no time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["TOY", "make_toy_phantom"]

TOY: dict[str, Any] = {"patch_size": [32, 32, 16], "network_def#n_filters": 4, "spacing_mm": [8.0, 8.0, 10.0]}


def make_toy_phantom(folder: Path, cases: tuple[int, int, int, int]) -> Path:
    """A phantom of the toy's voxels; returns its folder."""
    # Imported here: the process that only starts others needs none of it.
    from dinomix_monai.data import make_phantom

    return make_phantom(folder, cases=cases, size=(40, 40, 28), spacing_mm=(8.0, 8.0, 10.0)).parent
