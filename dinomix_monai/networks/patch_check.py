"""Whether a network can be trained on patches of a size."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

__all__ = ["check_patch_size"]


def check_patch_size(network: nn.Module, patch_size: Sequence[int], batch_size: int = 1, in_channels: int = 1) -> None:
    """
    Runs a copy of a network in training mode on shapes alone, which takes neither time nor memory.

    Args:
        network: the network, which stays as it is.
        patch_size: voxels of a patch along each axis.
        batch_size: patches of a step.
        in_channels: channels of a patch.

    Raises:
        ValueError: When the network cannot be trained on such patches, because its strides do not divide them or leave
            a single voxel, which has no variance to normalize by.
    """
    # A convolution's weights have two axes of channels, and then those of space.
    dims = next((weight.ndim - 2 for weight in network.parameters() if weight.ndim > 2), len(patch_size))
    if len(patch_size) != dims:
        raise ValueError(f"patch_size must have {dims} numbers, got {list(patch_size)}.")
    shapes = copy.deepcopy(network).to("meta").train()
    try:
        with torch.no_grad():
            shapes(torch.zeros(batch_size, in_channels, *patch_size, device="meta"))
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        if "more than 1" in reason:  # as PyTorch's normalizations begin, with sizes that nobody has seen before
            reason = "its strides leave a feature map of one voxel, which cannot be normalized. Double a side"
        raise ValueError(
            f"patch_size must be one that the network can be trained on, got {list(patch_size)}: {reason}."
        ) from error
