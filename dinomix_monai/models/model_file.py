"""
The file of a trained model, ``models/model.pt``, and what lies beside it.

The model is a plain state dict on the CPU, written in one move; ``labels.json`` names the classes, which weights cannot
tell; ``model.probe.pt`` is there where the frozen teacher is asked beside the model. Every door reads, checks and
writes models here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.networks.utils import get_state_dict
from torch import nn

from dinomix_monai.core.files import write_json
from dinomix_monai.core.tensor_file import read_tensor_file, shape_difference, write_tensor_file
from dinomix_monai.data.anatomy import ORGANS

__all__ = [
    "check_model",
    "load_model",
    "probe_path",
    "read_class_names",
    "read_model",
    "write_class_names",
    "write_model",
]

logger = logging.getLogger(__name__)

_LABELS_FILE = "labels.json"
_WEIGHTS = "the weights of a trained model"


def write_class_names(model_file: str | Path, class_names: Sequence[str]) -> Path:
    """
    Writes ``labels.json`` beside a model: names by label value, as ``labels`` of ``dataset.json``.

    Args:
        model_file: the model, which need not be there yet; its folder is made.
        class_names: names by label value, background first.

    Returns:
        The path of ``labels.json``.
    """
    names = {str(value): name for value, name in enumerate(class_names)}
    return write_json(Path(model_file).with_name(_LABELS_FILE), names)


def read_class_names(model_file: str | Path) -> list[str]:
    """
    Names of a model's classes, background first, from ``labels.json`` beside it.

    Without that file they are those of the metadata of the bundle whose ``models`` the model lies in. Without a bundle
    they are background and the organs of the built-in phantom, with a warning where there is a model.

    Raises:
        ValueError: When a file is something else.
    """
    path = Path(model_file).with_name(_LABELS_FILE)
    metadata = path.parent.parent / "configs" / "metadata.json"
    try:
        if path.is_file():
            labels = json.loads(path.read_bytes())
        elif metadata.is_file():
            path = metadata
            labels = json.loads(path.read_bytes())["network_data_format"]["outputs"]["pred"]["channel_def"]
        else:
            if Path(model_file).is_file():
                logger.warning("%s is missing: the classes of %s are taken for those of the phantom.", path, model_file)
            return ["background", *ORGANS]
        return [str(labels[str(value)]) for value in range(len(labels))]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise ValueError(
            f'{path} must name the classes as {{"0": "background", "1": ...}}, got something else. Take it from the '
            "training again, where it lies beside the model."
        ) from error


def write_model(network: nn.Module, model_file: str | Path, class_names: Sequence[str]) -> Path:
    """
    Writes the weights of a network, and the names of its classes beside them.

    A probe that lies there was weighed for another model, and is removed.

    Args:
        network: the network; of one that is wrapped for several processes, what is wrapped.
        model_file: file to write; replaced in one move, so there is a whole one at every moment.
        class_names: names by label value, background first.

    Returns:
        ``model_file``.

    Raises:
        OSError: When it cannot be written.
    """
    write_class_names(model_file, class_names)
    probe_path(model_file).unlink(missing_ok=True)
    return write_tensor_file({name: tensor.cpu() for name, tensor in get_state_dict(network).items()}, model_file)


def probe_path(model_file: str | Path) -> Path:
    """Where the linear probe of a model's frozen teacher lies, if it has one: ``model.probe.pt`` of ``model.pt``."""
    return Path(model_file).with_suffix(".probe.pt")


def read_model(model_file: str | Path, name: str = "model_file") -> dict[str, torch.Tensor]:
    """
    Weights of a trained model, on the CPU.

    Args:
        model_file: file of a plain state dict.
        name: name of the argument, for the message.

    Raises:
        FileNotFoundError: When there is none.
        ValueError: When the file is damaged, or something else than weights.
    """
    if not Path(model_file).is_file():
        raise FileNotFoundError(
            f"{name} must be {_WEIGHTS}, got {model_file}, which does not exist. "
            f"Train first, or pass {name} or the output_dir of the training."
        )
    weights = read_tensor_file(model_file, name, _WEIGHTS)
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(
            f"{name} must be {_WEIGHTS}, got {model_file} with something else than tensors. "
            "The model of a training is models/model.pt in its output_dir."
        )
    return weights


def check_model(
    model_file: str | Path, network: nn.Module | None = None, name: str = "model_file"
) -> dict[str, torch.Tensor]:
    """
    Makes sure that there is a model before any work is done.

    Args:
        model_file: file of its weights.
        network: the network that they are for; ``None`` to leave that open.
        name: name of the argument, for the message.

    Returns:
        The weights, as :func:`read_model` does.

    Raises:
        FileNotFoundError: When there is none.
        ValueError: When the file is not the weights of a model, or those of another network.
    """
    weights = read_model(model_file, name)
    if network is not None and (difference := shape_difference(weights, network.state_dict())):
        raise ValueError(
            f"{name} must be the weights of the configured network, got {model_file}, of which {difference}. Pass "
            "the overlay and the settings of network_def and patch_size that the model was trained with."
        )
    return weights


def load_model(network: nn.Module, model_file: str | Path, name: str = "model_file") -> nn.Module:
    """
    Loads the weights of a trained model into a network and returns the network.

    Args:
        network: the network, whose weights are replaced.
        model_file: file of the weights.
        name: name of the argument, for the message.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When the file is not the weights of a model, or those of another network.
    """
    network.load_state_dict(check_model(model_file, network, name))
    return network
