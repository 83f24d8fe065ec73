"""A teacher that knows the truth: the bound of what FKD can bring, for benchmarks only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from dinomix_monai.data import open_datalist
from dinomix_monai.data.phantom import ALL_LABELS_FILE

__all__ = ["ContentTokens", "labeled_cases_of_unlabeled"]


class ContentTokens(nn.Module):
    """
    Tokens that carry the share of each class in each cell, in place of ``dinomix_monai.teacher.SliceTokens``.

    Each class has a fixed random direction, and a token is the sum of the directions by the classes' shares.

    Args:
        num_classes: number of classes, background included.
        embed_dim: channels of the tokens.
    """

    fingerprint = "content"

    def __init__(self, num_classes: int, embed_dim: int = 64) -> None:
        super().__init__()
        directions = torch.randn(num_classes, embed_dim, generator=torch.Generator().manual_seed(0))
        self.register_buffer("directions", F.normalize(directions, dim=1))
        self.num_classes, self.embed_dim = num_classes, embed_dim

    @torch.no_grad()
    def forward(self, volume: torch.Tensor, grid: Sequence[int], cells: Sequence[int] | None = None) -> torch.Tensor:
        """Labels + 1, or 0 for none, (B, 1, H, W, D), to tokens (B, embed_dim, h, w, number of layers)."""
        shares = F.one_hot(volume[:, 0].long(), 1 + self.num_classes)[..., 1:].movedim(-1, 1).float()
        shares = F.adaptive_avg_pool3d(shares, tuple(grid))
        shares = shares if cells is None else shares[..., list(cells)]
        return torch.einsum("bchwd,ce->behwd", shares, self.directions)


def labeled_cases_of_unlabeled(dataset_dir: str | Path, phantom_dir: str | Path) -> list[dict[str, str]]:
    """The unlabeled cases with their labels, from the second datalist of the phantom."""
    unlabeled = open_datalist(dataset_dir, phantom_dir).unlabeled
    labeled = {case["image"]: case for case in open_datalist(dataset_dir, phantom_dir, ALL_LABELS_FILE).training}
    return [labeled[case["image"]] for case in unlabeled]
