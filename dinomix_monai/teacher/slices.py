"""Axial slices of a volume, and the teacher's tokens for them on the student's grid."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Literal, Protocol

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["SliceTeacher", "SliceTokens"]


class SliceTeacher(Protocol):
    """What :class:`SliceTokens` asks of a teacher: (N, 3, H, W) in [0, 1] to (N, embed_dim, H / stride, W / stride)."""

    stride: int
    embed_dim: int
    fingerprint: str

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens of a batch of images."""


class SliceTokens(nn.Module):
    """
    Tokens of a 2D teacher for each cell of a student's 3D feature map.

    The grid divides the volume evenly: of ``d`` cells along an axis of ``D`` voxels, cell ``k`` covers
    ``[k D / d, (k + 1) D / d)``. In depth, a layer of cells is represented by the axial slice at its center,
    interpolated linearly where the center falls between two slices. In plane, the slice is resized here so that exactly
    ``tokens_per_cell`` tokens span a cell along each axis, and these are averaged. This alignment is the contract: row
    and column of a token are row and column of its cell, and nothing is flipped or transposed.

    With ``"repeat"``, flipping the volume in depth flips the tokens. With ``"neighbors"`` it also exchanges the first
    and the third channel that the teacher sees. Of a volume with several channels the teacher sees each by itself, as
    gray slices, and the tokens are averaged. No gradient is computed. The teacher is frozen and no part of what is
    learned, so keep this module outside the network, like the teacher.

    Args:
        teacher: such as :class:`~dinomix_monai.teacher.FoundationTeacher`; see :class:`SliceTeacher`.
        channels: {``"neighbors"``, ``"repeat"``} the three channels are the slices one voxel below, at and one voxel
            above the center, the outermost slice repeated at the ends, or three times the one at the center.
            Defaults to ``"neighbors"``.
        tokens_per_cell: tokens along each of the two axes of a cell. More than 1 lets the teacher see more detail.
        batch_size: largest number of slices that the teacher is given at once.

    Raises:
        TypeError: When ``teacher`` cannot be called or lacks ``stride`` or ``embed_dim``.
        ValueError: When ``channels`` is not one of the above, or a number is below 1.

    Example:
        >>> import torch
        >>> from dinomix_monai.teacher import FoundationTeacher, SliceTokens
        >>> slice_tokens = SliceTokens(FoundationTeacher(weights="none"))
        >>> slice_tokens(torch.rand(1, 1, 16, 24, 8), grid=(2, 3, 1)).shape
        torch.Size([1, 384, 2, 3, 1])
    """

    def __init__(
        self,
        teacher: SliceTeacher,
        channels: Literal["neighbors", "repeat"] = "neighbors",
        tokens_per_cell: int = 1,
        batch_size: int = 16,
    ) -> None:
        super().__init__()
        if not (callable(teacher) and hasattr(teacher, "stride") and hasattr(teacher, "embed_dim")):
            raise TypeError(f"teacher must be callable and have stride and embed_dim, got {type(teacher).__name__}.")
        if channels not in ("neighbors", "repeat"):
            raise ValueError(f"channels must be 'neighbors' or 'repeat', got {channels!r}.")
        if tokens_per_cell < 1:
            raise ValueError(f"tokens_per_cell must be at least 1, got {tokens_per_cell}.")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.teacher: SliceTeacher = teacher
        self.offsets = (-1, 0, 1) if channels == "neighbors" else (0, 0, 0)
        self.tokens_per_cell = tokens_per_cell
        self.batch_size = batch_size

    @property
    def embed_dim(self) -> int:
        """Channels of the tokens."""
        return self.teacher.embed_dim

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the teacher."""
        return self.teacher.fingerprint

    @torch.no_grad()
    def forward(self, volume: torch.Tensor, grid: Sequence[int], cells: Iterable[int] | None = None) -> torch.Tensor:
        """
        Args:
            volume: shape (B, C, H, W, D), the last axis being depth; intensities are clamped to [0, 1].
            grid: cells (h, w, d) of the student's feature map along each axis of ``volume``.
            cells: indices in ``range(d)`` of the layers to compute, in the order wanted. Defaults to all.

        Returns:
            Tokens, shape (B, embed_dim, h, w, len(cells)), as a plain tensor.

        Raises:
            ValueError: When ``volume`` has another shape, ``grid`` is not three positive numbers, or ``cells`` is empty
                or outside of the grid.
        """
        if volume.ndim != 5:
            raise ValueError(f"volume must be (B, C, H, W, D), got {tuple(volume.shape)}.")
        if len(grid) != 3 or min(grid) < 1:
            raise ValueError(f"grid must be three positive numbers of cells, got {tuple(grid)}.")
        h, w, d = (int(n) for n in grid)
        layers = list(range(d)) if cells is None else [int(k) for k in cells]
        if not layers or min(layers) < 0 or max(layers) >= d:
            raise ValueError(f"cells must be indices from 0 to {d - 1}, at least one, got {layers}.")
        # A MetaTensor would carry the meta data of the volume on to its tokens, where they are wrong.
        channels = volume.as_subclass(torch.Tensor).unbind(1)
        tokens = self._tokens_of(channels[0], (h, w, d), layers)
        for other in channels[1:]:
            tokens = tokens + self._tokens_of(other, (h, w, d), layers)
        return tokens / len(channels) if len(channels) > 1 else tokens

    def _tokens_of(self, voxels: torch.Tensor, grid: tuple[int, int, int], layers: Sequence[int]) -> torch.Tensor:
        """Tokens of one channel (B, H, W, D)."""
        h, w, d = grid
        wanted = list(product(range(len(voxels)), layers))
        chunks = [wanted[i : i + self.batch_size] for i in range(0, len(wanted), self.batch_size)]
        tokens = torch.cat([self._tokens(self._cut(voxels, d, chunk), h, w) for chunk in chunks])
        # (B * len(cells), C, h, w) -> (B, C, h, w, len(cells))
        return tokens.unflatten(0, (len(voxels), len(layers))).permute(0, 2, 3, 4, 1)

    def _cut(self, voxels: torch.Tensor, d: int, wanted: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Slices (N, 3, H, W) of (B, H, W, D), for N pairs of an item of the batch and a layer of cells."""
        depth = voxels.shape[-1]
        found = [[_neighbors(depth, d, layer, offset) for offset in self.offsets] for _, layer in wanted]
        # (N, 3, 2): the lower and the upper slice, and their weights
        index = torch.tensor([[slices for slices, _ in row] for row in found], device=voxels.device)
        weight = torch.tensor([[weights for _, weights in row] for row in found], device=voxels.device)[..., None, None]
        item = torch.tensor([[item] for item, _ in wanted], device=voxels.device)
        lower, upper = (voxels[item, :, :, index[..., i]].float().clamp(0, 1) * weight[:, :, i] for i in (0, 1))
        return lower + upper

    def _tokens(self, slices: torch.Tensor, h: int, w: int) -> torch.Tensor:
        side = self.tokens_per_cell * self.teacher.stride
        if slices.shape[2:] != (h * side, w * side):
            # Antialiasing has an effect on an axis that shrinks, and none on one that grows.
            slices = F.interpolate(
                slices, size=(h * side, w * side), mode="bilinear", align_corners=False, antialias=True
            )
        return F.avg_pool2d(self.teacher(slices), self.tokens_per_cell)


def _neighbors(depth: int, d: int, layer: int, offset: int) -> tuple[tuple[int, int], tuple[float, float]]:
    """
    The two slices around the center of a layer of cells, moved by ``offset`` slices, and their weights.

    In whole numbers until the last division, so that a flip in depth exchanges the two weights exactly.
    """
    unit = 2 * d
    # Cell k covers [k D / d, (k + 1) D / d) and slice i covers [i, i + 1): the center is slice (k + 1/2) D / d - 1/2.
    center = (2 * layer + 1) * depth - d + offset * unit
    lower, rest = divmod(min(max(center, 0), (depth - 1) * unit), unit)
    return (lower, min(lower + 1, depth - 1)), ((unit - rest) / unit, rest / unit)
