"""What the pictures of a report have in common: colors of the classes, the slice to show, figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

__all__ = [
    "class_colors",
    "new_figure",
    "principal_component_colors",
    "radiological",
    "save_figure",
    "slice_with_most_classes",
]


def class_colors(num_classes: int) -> np.ndarray:
    """Red, green, blue and opacity of each class, shape (num_classes, 4); the background is transparent."""
    # Imported here, because matplotlib takes a second to import and only a report needs it.
    from matplotlib import colormaps

    # Each of these maps has pairs of a strong color and a pale one; the strong colors of a map come before its pale
    # ones. Where there are more classes than colors, the colors begin again.
    maps = [colormaps[name](np.arange(20).reshape(10, 2).T.ravel()) for name in ("tab20", "tab20b")]
    colors = np.resize(np.concatenate(maps), (num_classes, 4))
    colors[:, 3] = 0.6
    return np.concatenate([np.zeros((1, 4)), colors[:-1]])


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure of this size in inches and its axes, made without a display and without ``pyplot``."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns)


def save_figure(figure: Any, path: Path) -> Path:
    """Writes a figure as a picture and returns the picture's path."""
    figure.savefig(path, dpi=110)
    return path


def slice_with_most_classes(label: np.ndarray, axis: int) -> int:
    """Index of the slice of a label map that shows most classes; of equal ones, that with most foreground voxels."""
    slices = np.moveaxis(label, axis, 0)
    return max(range(len(slices)), key=lambda i: (len(np.unique(slices[i])), np.count_nonzero(slices[i])))


def principal_component_colors(tokens: torch.Tensor) -> torch.Tensor:
    """
    The first three principal components of the cells' tokens, scaled to [0, 1].

    Args:
        tokens: shape (C, h, w); a cell without a token is 0 in all channels.

    Returns:
        Shape (h, w, 3).
    """
    cells = F.normalize(tokens.flatten(1).T.float(), dim=1)
    has_token = cells.any(dim=1)
    components = torch.zeros(len(cells), 3, device=cells.device)
    if not has_token.any():
        return components.unflatten(0, tokens.shape[1:])
    centered = cells[has_token] - cells[has_token].mean(dim=0)
    directions = torch.linalg.svd(centered, full_matrices=False)[2][:3]
    components[has_token, : len(directions)] = centered @ directions.T
    low, high = components[has_token].quantile(torch.tensor([0.02, 0.98], device=cells.device), dim=0)
    colors = ((components - low) / (high - low).clamp_min(1e-6)).clamp(0, 1)
    return colors.unflatten(0, tokens.shape[1:])


def radiological(plane: np.ndarray) -> np.ndarray:
    """A plane (R, A, ...) in radiological convention: the patient's right on the left, front on top."""
    return np.swapaxes(plane[::-1], 0, 1)[::-1]
