"""From student channels to teacher channels."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["ProjectionHead"]


class ProjectionHead(nn.Module):
    """
    Projects student features to the channels of a teacher, each cell by itself.

    It is trained with the student and kept out of it: the student alone is saved, served and sent to a server.

    Args:
        in_channels: channels of the student's features.
        out_channels: channels of the teacher's.
        hidden_channels: channels of a hidden layer, or ``None`` for a linear projection.
    """

    def __init__(self, in_channels: int, out_channels: int, hidden_channels: int | None = None) -> None:
        super().__init__()
        # Not convolutions of kernel 1, whose backward pass costs a CPU many times that of the matrix product they are.
        if hidden_channels is None:
            self.layers: nn.Module = nn.Linear(in_channels, out_channels)
        else:
            self.layers = nn.Sequential(
                nn.Linear(in_channels, hidden_channels), nn.GELU(), nn.Linear(hidden_channels, out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: student features, shape (B, in_channels, H, W[, D]).

        Returns:
            Projected features, shape (B, out_channels, H, W[, D]).
        """
        return self.layers(x.movedim(1, -1)).movedim(-1, 1)
