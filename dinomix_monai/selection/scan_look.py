"""What a scan looks like before anybody has labeled it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.transforms import Compose, Orientationd
from monai.utils.enums import CommonKeys as Keys

from dinomix_monai.core.precision import computing_in, without_float16
from dinomix_monai.core.tensor_file import read_tensor_file, write_tensor_file
from dinomix_monai.teacher import SliceTokens
from dinomix_monai.transforms import LoadVolumed, ScaleChannelsd
from dinomix_monai.volumes import channel_files

__all__ = ["ScanLooker"]

# Side of what a token stands for in plane, as it served the linear probe best, and how many there may be along an axis.
_TOKEN_MM, _FEWEST, _MOST = 12.5, 8, 48
_SLICES = 16
_TOKENS = 1024
# Without labels nobody knows which intensities matter: those of soft tissue in CT, which alone reaches down to air in
# Hounsfield units, and percentiles of each image elsewhere.
_AIR_HU, _SOFT_TISSUE_HU = -500.0, (-160.0, 240.0)


class ScanLooker:
    """
    Looks at scans as they are on disk, and keeps each look in a file.

    A look takes no label and no setting that is planned by labels: the teacher sees up to 16 slices, spread evenly from
    foot to head, with a token for each square of 12.5 mm. The file of a look is named after the scan's files, their
    sizes and times, and the teacher, so that a scan that was changed is looked at again.

    Args:
        slice_tokens: the teacher.
        folder: where looks are kept; it is made.
        dtype: see :class:`dinomix_monai.engines.TokenProbe`.
        device: where the teacher computes.
    """

    def __init__(
        self,
        slice_tokens: SliceTokens,
        folder: str | Path,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.slice_tokens, self.folder = slice_tokens.to(device), Path(folder)
        self.dtype, self.device = without_float16(dtype), torch.device(device)
        self._load = Compose([LoadVolumed(Keys.IMAGE), Orientationd(Keys.IMAGE, axcodes="RAS", labels=None)])

    def __call__(self, image: str | Sequence[str]) -> torch.Tensor:
        """
        Looks at a scan, or reads what it looked like.

        Args:
            image: its file, or a list with the file of each channel.

        Returns:
            Tokens of cells that are spread over the scan, shape (N, C), in half precision.

        Raises:
            ValueError: When a file is damaged, its header contradicts itself, or its voxels are not finite.
        """
        file = self.file(image)
        if file.is_file():
            return read_tensor_file(file, "folder", "a look at a scan")["tokens"]
        tokens = self._look(image)
        write_tensor_file({"tokens": tokens}, file)
        return tokens

    def file(self, image: str | Sequence[str]) -> Path:
        """The file of the look at a scan."""
        stats = [(str(path), Path(path).stat()) for path in channel_files(image)]
        content = [
            self.slice_tokens.fingerprint,
            [_TOKEN_MM, _FEWEST, _MOST, _SLICES, _TOKENS],
            [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats],
        ]
        return self.folder / f"{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]}.pt"

    @torch.no_grad()
    def _look(self, image: str | Sequence[str]) -> torch.Tensor:
        volume = self._load({Keys.IMAGE: image})[Keys.IMAGE]
        sides_mm = [n * float(mm) for n, mm in zip(volume.shape[1:3], volume.pixdim)]
        count = min(_SLICES, volume.shape[3])
        places = (torch.arange(count) * 2 + 1) * volume.shape[3] // (2 * count)
        voxels = volume.as_subclass(torch.Tensor)[..., places].float()
        if not voxels.isfinite().all():
            raise ValueError(f"Voxels of a scan must be finite, got NaN or infinity in {image}. Replace them.")
        windows = [_SOFT_TISSUE_HU if channel.min() <= _AIR_HU else None for channel in voxels]
        scaled = ScaleChannelsd(Keys.IMAGE, windows)({Keys.IMAGE: voxels})[Keys.IMAGE]
        cells = [min(max(round(side / _TOKEN_MM), _FEWEST), _MOST) for side in sides_mm]
        with computing_in(self.dtype, self.device):
            tokens = self.slice_tokens(scaled[None].to(self.device), [*cells, count])[0]
        tokens = tokens.flatten(1).T.cpu()
        # The same cells of scans of one shape, so that a scan and its copy look the same.
        chosen = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))[:_TOKENS]
        return tokens[chosen].half()
