"""Networks that begin where a training ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from dinomix_monai.tensor_file import read_tensor_file

__all__ = ["with_weights"]


def with_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """
    Loads the weights of a trained model into a network and returns it.

    Args:
        network: the network, whose weights are replaced.
        path: file of a plain state dict, as ``models/model.pt`` of a training.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the file is damaged, or the weights are not those of such a network with as many classes.
    """
    weights = read_tensor_file(path, "path", "the weights of a trained model")
    needed = network.state_dict()
    found, expected = ({name: _shape(value) for name, value in state.items()} for state in (weights, needed))
    if different := sorted(name for name, _ in found.items() ^ expected.items()):
        raise ValueError(
            f"path must be the weights of this network with as many classes, got {path}, of which {different[0]} has "
            f"the shape {found.get(different[0])} and not {expected.get(different[0])}. Train anew, or use the "
            "settings of that model."
        )
    network.load_state_dict(weights)
    return network


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
