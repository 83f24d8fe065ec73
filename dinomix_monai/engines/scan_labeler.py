"""From the file of a scan to a label map on its grid."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from monai.utils.enums import CommonKeys as Keys

from dinomix_monai.transforms import InvertToLabeld, SaveLabeld
from dinomix_monai.volumes import Image, as_image, first_file, label_path

__all__ = ["ScanLabeler"]


class ScanLabeler:
    """
    Segments the file of a scan; the label map lies on the grid of the file.

    Args:
        preprocessing: transforms of an image before it is segmented.
        logits: gives logits, shape (1, C, H, W, D), of a preprocessed image (1, C, H, W, D).
    """

    def __init__(self, preprocessing: Compose, logits: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.preprocessing, self.logits = preprocessing, logits
        self._to_file = InvertToLabeld(Keys.PRED, Keys.IMAGE)

    @torch.no_grad()
    def __call__(self, image: Image) -> dict[Hashable, Any]:
        """
        Segments one scan.

        Args:
            image: its file, or those of its channels.

        Returns:
            ``pred``, the label map (1, h, w, d) on the grid of the file; ``image`` as it was preprocessed; and
            ``logits``, shape (C, H, W, D), on the grid of that.
        """
        sample = self.preprocessing({Keys.IMAGE: as_image(image)})
        logits = self.logits(sample[Keys.IMAGE][None])[0]
        return {**self._to_file({**sample, Keys.PRED: logits}), "logits": logits}

    def write(self, image: Image, output_dir: str | Path) -> Path:
        """
        Writes the label map of a scan; returns its path, ``NAME_seg.nii.gz`` for ``NAME.nii.gz``, its first channel.

        Raises:
            OSError: When it cannot be written.
        """
        SaveLabeld(Keys.PRED, output_dir)(self(image))
        return label_path(output_dir, first_file(image))
