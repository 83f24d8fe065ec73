"""Label maps over a slice of their image, as TensorBoard shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_numpy
from monai.utils.enums import CommonKeys as Keys

from dinomix_monai.report.pictures import class_colors, radiological, slice_with_most_classes

__all__ = ["SliceOverlays"]


class SliceOverlays:
    """
    Pictures of the first case of the last batch, for MONAI's ``TensorBoardImageHandler``.

    They show the axial slice in which the label has most classes, in radiological convention: the image alone, with the
    ground truth, and with the prediction, in the colors of the report. So ``input_0`` of the handler is the image,
    ``input_1`` the ground truth and ``output`` the prediction, each of shape (3, H, W) in [0, 1]. Give the handler
    ``max_channels=3``. An evaluation without a case shows nothing.

    Args:
        num_classes: number of classes, background included; label values above them count as background.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def of_batch(self, batch: Sequence[Mapping[str, torch.Tensor]] | None) -> tuple[list[Any], list[Any]]:
        """
        The handler's ``batch_transform``.

        Args:
            batch: for each case ``image`` of shape (C, H, W, D), of which the first channel is drawn, with axes R, A
                and S, and ``label``, shape (1, H, W, D).
        """
        if not batch:
            return [None], [None]
        image, label = batch[0][Keys.IMAGE], batch[0][Keys.LABEL]
        return [self._drawn(image, label, torch.zeros_like(label))], [self._drawn(image, label, label)]

    def of_output(self, output: Sequence[Mapping[str, torch.Tensor]] | None) -> list[Any]:
        """
        The handler's ``output_transform``.

        Args:
            output: as ``batch``, with the label map ``pred`` of the same shape as ``label``.
        """
        if not output:
            return [None]
        return [self._drawn(*(output[0][key] for key in (Keys.IMAGE, Keys.LABEL, Keys.PRED)))]

    def _drawn(self, image: torch.Tensor, label: torch.Tensor, classes: torch.Tensor) -> np.ndarray:
        shown = slice_with_most_classes(self._label_map(label), axis=2)
        gray = radiological(convert_to_numpy(image[0, ..., shown]).clip(0, 1))[..., None]
        colors = class_colors(self.num_classes)[radiological(self._label_map(classes[..., shown]))]
        opacity = colors[..., 3:]
        return np.moveaxis((1 - opacity) * gray + opacity * colors[..., :3], -1, 0)

    def _label_map(self, label: torch.Tensor) -> np.ndarray:
        values = convert_to_numpy(label[0]).astype(int)
        return np.where(values < self.num_classes, values, 0)
