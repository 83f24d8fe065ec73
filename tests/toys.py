"""The bundle and its phantom, shrunk until a step takes no time."""

from __future__ import annotations

import json
from pathlib import Path

from dinomix_monai.data import make_phantom

TOY = {"patch_size": [32, 32, 16], "network_def#n_filters": 4, "spacing_mm": [8.0, 8.0, 10.0]}


def make_toy_phantom(folder: Path, cases: tuple[int, int, int, int]) -> Path:
    """A phantom of the toy's voxels; returns its folder."""
    return make_phantom(folder, cases=cases, size=(40, 40, 28), spacing_mm=(8.0, 8.0, 10.0)).parent


def as_anybodys(phantom: Path) -> Path:
    """Takes from a phantom's list that it is one; returns its folder."""
    listed = json.loads((phantom / "dataset.json").read_text())
    del listed["phantom_seed"]
    (phantom / "dataset.json").write_text(json.dumps(listed))
    return phantom
