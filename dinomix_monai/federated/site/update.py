"""What a site takes from its network for the server, and what of it stays."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from dinomix_monai.federated.protocol import UpdateForm

__all__ = ["Weights", "make_update", "normalization_names"]

Weights = Mapping[str, torch.Tensor]
"""Parameters and buffers of a network by name, as in its state dict."""


def normalization_names(network: nn.Module) -> set[str]:
    """
    Names of the parameters and buffers of all normalization layers, which FedBN leaves at a site.

    Reference: Li et al., "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", ICLR 2021,
    https://arxiv.org/abs/2102.07623.

    Example:
        >>> sorted(normalization_names(nn.Sequential(nn.Conv3d(1, 2, 1), nn.GroupNorm(1, 2))))
        ['1.bias', '1.weight']
    """
    kinds = (_NormBase, nn.GroupNorm, nn.LayerNorm)
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        if isinstance(module, kinds)
        for name in module.state_dict()
    }


def make_update(
    trained: Weights, received: Weights, transfer: str, kept_names: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """
    Makes the update that goes to the server.

    Args:
        trained: the student's weights after training.
        received: the weights of the global model that the round began with.
        transfer: form of the update, one of :class:`~dinomix_monai.federated.protocol.UpdateForm`.
        kept_names: names of the weights that stay at the site.

    Returns:
        Tensors on the CPU by name, of the shapes that they have in the network, which share no memory with it.
        Differences of whole numbers, such as a batch normalization's counter, stay whole numbers.

    Example:
        >>> trained, received = {"w": torch.tensor([1.5])}, {"w": torch.tensor([1.0])}
        >>> make_update(trained, received, "difference")
        {'w': tensor([0.5000])}
    """
    update = {}
    for name, value in trained.items():
        if name in kept_names:
            continue
        value = value.detach().cpu().clone()
        if transfer != UpdateForm.FULL:
            value = value - received[name].to(value)
            if transfer == UpdateForm.HALF_DIFFERENCE and value.is_floating_point():
                value = value.half()
        update[name] = value
    return update
