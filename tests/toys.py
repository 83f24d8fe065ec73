"""The bundle and its phantom, shrunk until a step takes no time."""

from __future__ import annotations

from pathlib import Path

from dinomix_monai.data import make_phantom

TOY = {"patch_size": [32, 32, 16], "network_def#n_filters": 4, "spacing_mm": [8.0, 8.0, 10.0]}


def make_toy_phantom(folder: Path, cases: tuple[int, int, int, int]) -> Path:
    """A phantom of the toy's voxels; returns its folder."""
    return make_phantom(folder, cases=cases, size=(40, 40, 28), spacing_mm=(8.0, 8.0, 10.0)).parent
