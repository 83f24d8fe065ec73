"""Networks that begin where a training ended."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

__all__ = ["with_weights"]


def with_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """
    Loads the weights of a trained model into a network and returns it.

    Args:
        network: the network, whose weights are replaced.
        path: file of a plain state dict, as ``models/model.pt`` of a training.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the weights are not those of such a network with as many classes.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"path must be the weights of a trained model, got {path}, which does not exist.")
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except RuntimeError as error:
        raise ValueError(
            f"path must be the weights of this network with as many classes, got {path}. Train anew, or use the "
            f"settings of that model. {error}"
        ) from error
    return network
