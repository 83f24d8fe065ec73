"""Networks that begin where a training ended."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from dinomix_monai.core.tensor_file import read_tensor_file, shape_difference

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
    if difference := shape_difference(weights, network.state_dict()):
        raise ValueError(
            f"path must be the weights of this network with as many classes, got {path}, of which {difference}. Train "
            "anew, or use the settings of that model."
        )
    network.load_state_dict(weights)
    return network
