"""Names of the classes, kept beside the weights of a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from dinomix_monai.core.tensor_file import read_tensor_file, shape_difference
from dinomix_monai.data.anatomy import ORGANS

__all__ = ["check_model_file", "read_labels", "write_labels"]

_FILE = "labels.json"


def write_labels(model_file: str | Path, class_names: Sequence[str]) -> Path:
    """Writes ``labels.json`` beside a model: names by label value, as ``labels`` of ``dataset.json``."""
    path = Path(model_file).with_name(_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({str(value): name for value, name in enumerate(class_names)}, indent=1) + "\n")
    return path


def read_labels(model_file: str | Path) -> list[str]:
    """
    Names of a model's classes, background first, from ``labels.json`` beside it.

    Without that file they are background and the organs of the built-in phantom, which the bundle's metadata describes.

    Raises:
        ValueError: When the file is something else.
    """
    path = Path(model_file).with_name(_FILE)
    if not path.is_file():
        return ["background", *ORGANS]
    try:
        labels = json.loads(path.read_bytes())
        return [str(labels[str(value)]) for value in range(len(labels))]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        raise ValueError(
            f'{path} must name the classes as {{"0": "background", "1": ...}}, got something else. Take it from the '
            "training again, where it lies beside the model."
        ) from error


def check_model_file(model_file: str | Path, network: nn.Module | None = None) -> None:
    """
    Makes sure that there is a model before any work is done.

    Args:
        model_file: its weights.
        network: the network that they are for; ``None`` to leave that open.

    Raises:
        FileNotFoundError: When there is none.
        ValueError: When the file is not the weights of a model, or those of another network.
    """
    if not Path(model_file).is_file():
        raise FileNotFoundError(
            f"model_file must be the weights of a trained model, got {model_file}, which does not exist. "
            "Train first, or pass model_file or the output_dir of the training."
        )
    weights = read_tensor_file(model_file, "model_file", "the weights of a trained model")
    if not weights or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise ValueError(
            f"model_file must be the weights of a trained model, got {model_file} with something else than tensors. "
            "The model of a training is models/model.pt in its output_dir."
        )
    if network is not None and (difference := shape_difference(weights, network.state_dict())):
        raise ValueError(
            f"model_file must be the weights of the configured network, got {model_file}, of which {difference}. Pass "
            "the overlay and the settings of network_def and patch_size that the model was trained with."
        )
