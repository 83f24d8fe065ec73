"""V-Net in the form that the semi-supervised segmentation literature uses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from monai.networks.layers.factories import Act, Conv, Dropout
from monai.networks.layers.utils import get_norm_layer
from monai.utils import ensure_tuple_rep
from torch import nn

__all__ = ["VNet"]


class VNet(nn.Module):
    """
    V-Net with 3x3x3 convolutions, as UA-MT and its successors train it (not the 5x5x5 of ``monai.networks.nets.VNet``).

    Level ``i`` has ``n_filters * 2**i`` channels and ``num_convs[i]`` convolutions on the way down and, but for the
    lowest, on the way up; levels are joined by strided convolutions, transposed convolutions and summed skips. The
    first convolution of the first level sees the image. With the defaults and ``n_filters=16`` it has the 9.45 million
    parameters that the literature reports.

    ``stem_stride`` puts the first level on a coarser grid: a strided convolution beside its own, and after it a
    projection of every cell to the logits of the voxels in it. No convolution then runs at full resolution, which makes
    a step several times cheaper on a CPU.

    Reference: Milletari et al., "V-Net: Fully Convolutional Neural Networks for Volumetric Medical Image
    Segmentation", 3DV 2016, https://arxiv.org/abs/1606.04797.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        out_channels: channels of the logits, background included.
        n_filters: channels of the first level.
        num_convs: convolutions of each level; its length is the number of levels.
        strides: stride between consecutive levels, one number or one entry for each of the ``len(num_convs) - 1``
            steps; an entry is a number or one number for each axis.
        stem_stride: stride in front of the first level, one number or one for each axis.
        norm: normalization, as in MONAI: a name or a name with arguments.
        act: activation, likewise.
        dropout: probability of dropping a channel at the lowest level and before the logits, 0 for none.
        residual: whether the input of a level is added to the output of its convolutions.

    Raises:
        ValueError: When ``num_convs`` or ``strides`` do not describe at least two levels, or a stride not each axis.

    Example:
        >>> import torch
        >>> from dinomix_monai.networks import VNet
        >>> VNet(in_channels=1, out_channels=4, n_filters=4)(torch.rand(2, 1, 16, 16, 16)).shape
        torch.Size([2, 4, 16, 16, 16])
    """

    def __init__(
        self,
        spatial_dims: int = 3,
        in_channels: int = 1,
        out_channels: int = 2,
        n_filters: int = 16,
        num_convs: Sequence[int] = (1, 2, 3, 3, 3),
        strides: int | Sequence[int | Sequence[int]] = 2,
        stem_stride: int | Sequence[int] = 1,
        norm: str | tuple = "batch",
        act: str | tuple = ("relu", {"inplace": True}),
        dropout: float = 0.0,
        residual: bool = False,
    ) -> None:
        super().__init__()
        levels = len(num_convs)
        if levels < 2 or min(num_convs) < 1:
            raise ValueError(
                f"num_convs must list at least 2 levels of at least 1 convolution, got {tuple(num_convs)}."
            )
        steps: list = [strides] * (levels - 1) if isinstance(strides, int) else list(strides)
        if len(steps) != levels - 1:
            raise ValueError(f"strides must have {levels - 1} entries for {levels} levels, got {len(steps)}.")
        steps = [ensure_tuple_rep(step, spatial_dims) for step in steps]
        stem = ensure_tuple_rep(stem_stride, spatial_dims)
        self.multiples = [math.prod(strides_of_axis) for strides_of_axis in zip(stem, *steps)]
        channels = [n_filters * 2**level for level in range(levels)]
        convolution = Conv[Conv.CONV, spatial_dims]
        transposed = Conv[Conv.CONVTRANS, spatial_dims]

        def unit(layer: nn.Module, out: int) -> list[nn.Module]:
            name, kwargs = (act, {}) if isinstance(act, str) else act
            return [layer, get_norm_layer(norm, spatial_dims, out), Act[name](**kwargs)]

        def stage(level: int, count: int) -> nn.Module:
            c = channels[level]
            convs = [unit(convolution(c, c, 3, padding=1), c) for _ in range(count)]
            return _Stage([module for conv in convs for module in conv], residual) if convs else nn.Identity()

        is_strided = max(stem) > 1
        kernel = {"kernel_size": stem, "stride": stem} if is_strided else {"kernel_size": 3, "padding": 1}
        first = convolution(in_channels, channels[0], **kernel)
        self.stem = nn.Sequential(*unit(first, channels[0]))
        after_stem = num_convs[0] if is_strided else num_convs[0] - 1
        self.encoder = nn.ModuleList(stage(level, count) for level, count in enumerate([after_stem, *num_convs[1:]]))
        self.down = nn.ModuleList(
            nn.Sequential(*unit(convolution(channels[i], channels[i + 1], step, step), channels[i + 1]))
            for i, step in enumerate(steps)
        )
        self.up = _from_the_lowest(
            nn.Sequential(*unit(transposed(channels[i + 1], channels[i], step, step), channels[i]))
            for i, step in enumerate(steps)
        )
        self.decoder = _from_the_lowest(stage(level, num_convs[level]) for level in range(levels - 1))
        self.dropout = Dropout[Dropout.DROPOUT, spatial_dims](dropout) if dropout else nn.Identity()
        to_voxels = transposed if is_strided else convolution
        self.head = to_voxels(channels[0], out_channels, stem, stem)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """
        Args:
            x: images, shape (B, in_channels, H, W[, D]); each side must be a multiple of the product of its strides.

        Returns:
            Logits, shape (B, out_channels, H, W[, D]).

        Raises:
            ValueError: When a side is not such a multiple.
        """
        for side, multiple in zip(x.shape[2:], self.multiples):
            if side % multiple != 0:
                raise ValueError(f"sides of x must be multiples of {self.multiples}, got {list(x.shape[2:])}.")
        x = self.stem(x)
        skips: list[torch.Tensor] = []
        for encoder, down in zip(self.encoder, self.down):
            x = encoder(x)
            skips.append(x)
            x = down(x)
        x = self.dropout(self.encoder[-1](x))
        for up, decoder in zip(self.up.values(), self.decoder.values()):
            x = decoder(up(x) + skips.pop())
        return self.head(self.dropout(x))


class _Stage(nn.Module):
    """Convolutions of one level, with or without the identity around them."""

    def __init__(self, modules: list[nn.Module], residual: bool) -> None:
        super().__init__()
        self.convs = nn.Sequential(*modules)
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.convs(x) if self.residual else self.convs(x)


def _from_the_lowest(modules: Iterable[nn.Module]) -> nn.ModuleDict:
    # Named by level as a list would be, but in the order of the way up: TorchScript cannot walk a list backwards.
    return nn.ModuleDict({str(level): module for level, module in reversed(list(enumerate(modules)))})
