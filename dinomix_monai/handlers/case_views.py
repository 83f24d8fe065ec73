"""A case in three planes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing
from monai.transforms import Orientation
from monai.utils import convert_to_tensor

from dinomix_monai.handlers.pictures import class_colors, new_figure, save_figure

__all__ = ["View", "draw_case", "orthogonal_views"]


class View(NamedTuple):
    """A slice of image, prediction and label, and how high a pixel is for its width."""

    image: np.ndarray
    prediction: np.ndarray
    label: np.ndarray
    aspect: float


def draw_case(path: Path, views: Sequence[View], class_names: Sequence[str], caption: str) -> Path:
    """Prediction over ground truth in each plane."""
    figure, axes = new_figure(9, 7, rows=2, columns=len(views))
    colors = class_colors(len(class_names))
    for column, view in enumerate(views):
        for row, (name, classes) in enumerate((("prediction", view.prediction), ("ground truth", view.label))):
            ax = np.reshape(axes, (2, -1))[row][column]
            ax.imshow(view.image, cmap="gray", aspect=view.aspect)
            ax.imshow(colors[classes.astype(int)], aspect=view.aspect, interpolation="nearest")
            ax.set_axis_off()
            ax.set_title(name if column == 0 else "", fontsize="small")
    # Imported here, because it takes a second and only an evaluation needs it.
    from matplotlib.patches import Patch

    marks = [Patch(color=color[:3], label=name) for color, name in zip(colors[1:], class_names[1:])]
    figure.legend(handles=marks, loc="outside lower center", ncols=5, fontsize="x-small", frameon=False)
    figure.suptitle(caption, fontsize="medium")
    return save_figure(figure, path)


def orthogonal_views(image: MetaTensor, prediction: torch.Tensor, label: torch.Tensor) -> list[View]:
    """For each axis of a volume (1, H, W[, D]), the slice that shows most classes, as radiologists look at it."""
    # Patient's right on the left, front and head on top once the second axis points upwards.
    turn = Orientation(axcodes="LAS"[: image.ndim - 1], labels=None)
    plain = [convert_to_tensor(x, track_meta=False) for x in (image, prediction, label)]
    turned: list[Any] = [turn(MetaTensor(x, affine=image.affine)) for x in plain]
    arrays = [x[0].numpy(force=True) for x in turned]
    spacing = affine_to_spacing(turned[0].affine, r=arrays[0].ndim).tolist()
    if len(spacing) == 2:
        cut_image, cut_prediction, cut_label = (array.T[::-1] for array in arrays)
        return [View(cut_image, cut_prediction, cut_label, spacing[1] / spacing[0])]
    views = []
    for axis in (2, 1, 0):
        slices = np.moveaxis(arrays[2], axis, 0)
        best = int(np.argmax([len(np.unique(s)) * 1e6 + np.count_nonzero(s) for s in slices]))
        width, height = (side for other, side in enumerate(spacing) if other != axis)
        cut_image, cut_prediction, cut_label = (np.take(array, best, axis).T[::-1] for array in arrays)
        views.append(View(cut_image, cut_prediction, cut_label, height / width))
    return views
