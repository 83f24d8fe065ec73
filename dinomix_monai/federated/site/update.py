"""The update that a site sends: names, what has changed, and in which precision."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["State", "make_update", "norm_names"]

State = Mapping[str, torch.Tensor]


def norm_names(network: nn.Module) -> set[str]:
    """Names of the parameters and buffers of all normalization layers."""
    kinds = (_NormBase, nn.GroupNorm, nn.LayerNorm)
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        if isinstance(module, kinds)
        for name in module.state_dict()
    }


def make_update(local: State, received: State, transfer: str, left_out: set[str] | None = None) -> State:
    """
    What goes to the server.

    Args:
        local: weights after training.
        received: the global weights that training began with.
        transfer: one of :data:`~dinomix_monai.federated.protocol.TRANSFERS`.
        left_out: names that stay at the site.

    Returns:
        Tensors on the CPU by name. Differences of whole numbers, as counters of batches are, stay whole numbers.
    """
    update = {}
    for name, value in local.items():
        if left_out and name in left_out:
            continue
        value = value.detach().cpu().clone()
        if transfer != "full":
            value = value - received[name].to(value)
            if transfer == "half_difference" and value.is_floating_point():
                value = value.half()
        update[name] = value
    return update
