"""A global model becomes the bundle's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinomix_monai.bundle import open_configuration
from dinomix_monai.core.tensor_file import read_tensor_file
from dinomix_monai.models import write_model

__all__ = ["promote_checkpoint", "read_checkpoint"]


def read_checkpoint(checkpoint: str | Path) -> dict[str, Any]:
    """
    What the server has saved: ``model``, and under ``meta_props`` the classes, the teacher and the rounds.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is damaged or not a global model of this project.
    """
    path = Path(checkpoint).expanduser()
    content = read_tensor_file(path, "checkpoint", "a global model")
    about = content.get("meta_props")
    if not isinstance(about, dict) or "class_names" not in about:
        raise ValueError(
            f"checkpoint must be an FL_global_model.pt or best_FL_global_model.pt of a run that has begun, got {path}."
        )
    return content


def promote_checkpoint(
    checkpoint: str | Path, model_file: str | Path, config_file: str | Path | Sequence[str | Path]
) -> Path:
    """
    Writes the weights of a global model as a plain state dict, and the names of its classes beside it.

    They are loaded strictly into the ``network_def`` of the configuration first, which gives each tensor its own type.

    Args:
        checkpoint: see :func:`read_checkpoint`.
        model_file: file to write; replaced in one move.
        config_file: the bundle's training configuration, with the overlays of the run.

    Returns:
        ``model_file``.

    Raises:
        FileNotFoundError: When ``checkpoint`` or ``config_file`` is missing.
        ValueError: When the weights are not those of that network, or a file is damaged.
    """
    content = read_checkpoint(checkpoint)
    about = content["meta_props"]
    class_names = about["class_names"]
    parser = open_configuration(config_file)
    parser["num_classes"], parser["num_channels"] = len(class_names), about.get("num_channels", 1)
    network = parser.get_parsed_content("network_def")
    try:
        network.load_state_dict(content["model"], strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"checkpoint must hold the weights of network_def in {config_file}, got others; pass the overlays and "
            f"settings of the run. {error}"
        ) from error
    return write_model(network, model_file, class_names)
