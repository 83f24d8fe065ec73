"""What the pictures of reports have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["class_colors", "new_figure", "save_figure"]


def class_colors(num_classes: int) -> np.ndarray:
    """A color and an opacity for each class, background clear; shape (num_classes, 4)."""
    # Imported here, because it takes a second and only a report needs it.
    from matplotlib import colormaps

    # Each of these maps has pairs of a strong color and a pale one: all strong ones of the first map come first. With
    # more classes than colors they come again.
    maps = [colormaps[name](np.arange(20).reshape(10, 2).T.ravel()) for name in ("tab20", "tab20b")]
    colors = np.resize(np.concatenate(maps), (num_classes, 4))
    colors[:, 3] = 0.6
    return np.concatenate([np.zeros((1, 4)), colors[:-1]])


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure of this size in inches, and its axes; it needs no display and no ``pyplot``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns)


def save_figure(figure: Any, path: Path) -> Path:
    """Writes a figure and returns its path."""
    figure.savefig(path, dpi=110)
    return path
