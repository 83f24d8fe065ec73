"""What a scan looks like from afar."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from monai.transforms import Compose, Orientationd
from monai.utils.enums import CommonKeys as Keys
from torch.nn import functional as F

from dinomix_monai.core.files import atomic_write
from dinomix_monai.transforms import AIR_HU, LoadVolumed, ScaleChannelsd
from dinomix_monai.volumes import channel_files

__all__ = ["Thumbnails"]

_SIDE = 8
# Without labels nobody knows which intensities matter: those of soft tissue in CT, and percentiles of each image
# elsewhere.
_SOFT_TISSUE_HU = (-160.0, 240.0)


class Thumbnails:
    """
    Makes thumbnails of scans as they are on disk, and keeps each in a file.

    A thumbnail has the mean intensity in each of 8 x 8 x 8 boxes of the scan. It takes no label and no setting. Its
    file is named after the scan's files, their sizes and times, so that a scan that was changed gets another one.

    Args:
        folder: where thumbnails are kept; it is made.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self._load = Compose([LoadVolumed(Keys.IMAGE), Orientationd(Keys.IMAGE, axcodes="RAS", labels=None)])

    def __call__(self, image: str | Sequence[str]) -> np.ndarray:
        """
        The thumbnail of a scan.

        Args:
            image: its file, or a list with the file of each channel.

        Returns:
            Values in [0, 1], shape (C, 8, 8, 8), in RAS order.

        Raises:
            ValueError: When a file is damaged, its header contradicts itself, or its voxels are not finite.
        """
        file = self.file(image)
        if not file.is_file():
            with atomic_write(file, is_shared=True) as stream:
                np.save(stream, self._make(image))
        return np.load(file)

    def file(self, image: str | Sequence[str]) -> Path:
        """The file of the thumbnail of a scan."""
        stats = [(str(path), Path(path).stat()) for path in channel_files(image)]
        content = json.dumps([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])
        return self.folder / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.npy"

    def _make(self, image: str | Sequence[str]) -> np.ndarray:
        voxels = self._load({Keys.IMAGE: image})[Keys.IMAGE].as_subclass(torch.Tensor).float()
        if not voxels.isfinite().all():
            raise ValueError(f"Voxels of a scan must be finite, got NaN or infinity in {image}. Replace them.")
        windows = [_SOFT_TISSUE_HU if channel.min() <= AIR_HU else None for channel in voxels]
        scaled = ScaleChannelsd(Keys.IMAGE, windows)({Keys.IMAGE: voxels})[Keys.IMAGE]
        return F.adaptive_avg_pool3d(scaled, _SIDE).numpy()
