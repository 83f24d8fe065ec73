"""From student channels to teacher channels."""

from __future__ import annotations

import torch
from monai.networks.layers.factories import Conv
from torch import nn

__all__ = ["ProjectionHead"]


class ProjectionHead(nn.Module):
    """
    Convolutions of kernel 1 that project student features to the channels of a teacher.

    It is trained with the student and kept out of it: the student alone is saved, served and sent to a server.

    Args:
        in_channels: channels of the student's features.
        out_channels: channels of the teacher's.
        hidden_channels: channels of a hidden layer, or ``None`` for a linear projection.
        spatial_dims: 2 or 3.
    """

    def __init__(
        self, in_channels: int, out_channels: int, hidden_channels: int | None = None, spatial_dims: int = 3
    ) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        if hidden_channels is None:
            self.layers: nn.Module = convolution(in_channels, out_channels, 1)
        else:
            self.layers = nn.Sequential(
                convolution(in_channels, hidden_channels, 1), nn.GELU(), convolution(hidden_channels, out_channels, 1)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: student features, shape (B, in_channels, H, W[, D]).

        Returns:
            Projected features, shape (B, out_channels, H, W[, D]).
        """
        return self.layers(x)
