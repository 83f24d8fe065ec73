"""The picture of a probe: what the teacher sees of a slice, and what a linear classifier makes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils.enums import CommonKeys as Keys

from dinomix_monai.losses import FeatureDistillationLoss
from dinomix_monai.report.pictures import (
    class_colors,
    new_figure,
    principal_component_colors,
    radiological,
    save_figure,
    slice_with_most_classes,
)

__all__ = ["draw_probe"]


def draw_probe(
    path: Path,
    scan: Mapping[str, Any],
    tokens: torch.Tensor,
    found: Mapping[str, torch.Tensor],
    class_names: Sequence[str],
    loss: FeatureDistillationLoss,
) -> Path:
    """
    Draws the slice that shows most classes of a labeled scan, in radiological convention.

    Args:
        path: PNG to write.
        scan: labeled scan in RAS order, ``image`` (C, H, W, D), of which the first channel is drawn, and ``label``
            (1, H, W, D).
        tokens: the teacher's tokens of the scan, shape (E, h, w, d).
        found: label map (H, W, D) of a probe, by its title.
        class_names: names by label value, background first.
        loss: gives the weights of the cells.
    """
    image, label = scan[Keys.IMAGE], scan[Keys.LABEL].as_tensor()[0].numpy(force=True)
    z = slice_with_most_classes(label, axis=2)
    layer = min(z * tokens.shape[3] // image.shape[3], tokens.shape[3] - 1)
    seen = tokens[None, ..., layer]
    gray, colors = image.as_tensor()[0, ..., z].numpy(force=True), class_colors(len(class_names))
    maps = {
        "teacher's tokens": principal_component_colors(seen[0]),
        f"weight ({loss.weighting})": loss.weights(seen)[0],
    }
    figure, axes = new_figure(13, 3.6, columns=5)
    x, y = image.pixdim[:2].tolist()
    for ax, title, classes in (
        (axes[0], "slice", None),
        (axes[1], "ground truth", label[..., z]),
        *((axes[4], title, labels[..., z].numpy(force=True)) for title, labels in found.items()),
    ):
        ax.imshow(radiological(gray), cmap="gray", aspect=y / x)
        if classes is not None:
            ax.imshow(radiological(colors[np.asarray(classes, dtype=int)]), aspect=y / x, interpolation="nearest")
        ax.set_title(title, fontsize="small")
    for ax, (title, values) in zip(axes[2:4], maps.items()):
        # Cells need not be squares of whole voxels.
        columns, rows = gray.shape[0] / values.shape[0], gray.shape[1] / values.shape[1]
        ax.imshow(radiological(values.cpu().numpy()), aspect=y * rows / (x * columns), cmap="magma")
        ax.set_title(title, fontsize="small")
    for ax in axes:
        ax.set_axis_off()
    return save_figure(figure, path)
