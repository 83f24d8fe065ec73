"""A case in three planes: prediction and ground truth over the image."""

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

from dinomix_monai.report.pictures import class_colors, new_figure, save_figure, slice_with_most_classes

__all__ = ["SliceView", "draw_case", "orthogonal_views"]


class SliceView(NamedTuple):
    """A slice of image, prediction and label, and the ratio of a pixel's height to its width."""

    image: np.ndarray
    prediction: np.ndarray
    label: np.ndarray
    aspect: float


def draw_case(path: Path, views: Sequence[SliceView], class_names: Sequence[str], title: str) -> Path:
    """Draws each plane of a case: the prediction in the upper row, the ground truth in the lower."""
    figure, axes = new_figure(9, 7, rows=2, columns=len(views))
    colors = class_colors(len(class_names))
    planes = ("axial: ", "coronal: ", "sagittal: ") if len(views) == 3 else ("",)
    for column, (plane, view) in enumerate(zip(planes, views)):
        for row, (name, classes) in enumerate((("prediction", view.prediction), ("ground truth", view.label))):
            ax = np.reshape(axes, (2, -1))[row][column]
            ax.imshow(view.image, cmap="gray", aspect=view.aspect)
            ax.imshow(colors[classes.astype(int)], aspect=view.aspect, interpolation="nearest")
            ax.set_axis_off()
            ax.set_title(plane + name, fontsize="medium")
    # Imported here, because matplotlib takes a second to import and only an evaluation needs it.
    from matplotlib.patches import Patch

    legend = [Patch(color=color[:3], label=name) for color, name in zip(colors[1:], class_names[1:])]
    figure.legend(handles=legend, loc="outside lower center", ncols=4, fontsize="medium", frameon=False)
    figure.suptitle(title, fontsize="large")
    return save_figure(figure, path)


def orthogonal_views(image: MetaTensor, prediction: torch.Tensor, label: torch.Tensor) -> list[SliceView]:
    """
    For each axis of a volume, the slice that shows most classes, in radiological convention.

    Args:
        image: shape (C, H, W[, D]), of which the first channel is drawn; its affine tells how it lies.
        prediction: label map, shape (1, H, W[, D]).
        label: label map, likewise.
    """
    # The patient's right comes to the left; front and head come to the top, once the second axis points upwards.
    orient = Orientation(axcodes="LAS"[: image.ndim - 1], labels=None)
    plain = [convert_to_tensor(x, track_meta=False) for x in (image, prediction, label)]
    oriented: list[Any] = [orient(MetaTensor(x, affine=image.affine)) for x in plain]
    arrays = [x[0].numpy(force=True) for x in oriented]
    spacing = affine_to_spacing(oriented[0].affine, r=arrays[0].ndim).tolist()
    if len(spacing) == 2:
        cut_image, cut_prediction, cut_label = (array.T[::-1] for array in arrays)
        return [SliceView(cut_image, cut_prediction, cut_label, spacing[1] / spacing[0])]
    views = []
    for axis in (2, 1, 0):
        shown = slice_with_most_classes(arrays[2], axis)
        width, height = (side for other, side in enumerate(spacing) if other != axis)
        cut_image, cut_prediction, cut_label = (np.take(array, shown, axis).T[::-1] for array in arrays)
        views.append(SliceView(cut_image, cut_prediction, cut_label, height / width))
    return views
