"""A global model becomes the bundle's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dinomix_monai.bundle import open_configuration
from dinomix_monai.core.tensor_file import read_tensor_file, shape_difference
from dinomix_monai.models import write_model
from dinomix_monai.trained_bundle import check_trained_bundle, note_other_weights

__all__ = ["find_checkpoint", "promote_checkpoint", "read_checkpoint"]

_MODELS = ("best_FL_global_model.pt", "FL_global_model.pt")
# Where a run leaves them, below the folder that somebody knows it by.
_FOLDERS = {
    "app_server": "the run's folder at the server",
    "server/simulate_job/app_server": "nvflare simulator -w",
    "*/server/simulate_job/app_server": "job.py --workspace",
    "workspace/app_server": "a result that was downloaded",
    "*/workspace/app_server": "job.py --workspace with --env poc or prod, and NVFlare's folder of downloads",
}


def find_checkpoint(path: str | Path) -> Path:
    """
    Finds the global model of a run: the best one, or the last one of a run that has none.

    Args:
        path: the file itself, or the folder of a run: the workspace of a simulation, or a result that was downloaded.

    Returns:
        The file.

    Raises:
        FileNotFoundError: When there is no model in the folder.
        ValueError: When there are those of several runs.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return folder
    runs = sorted({run for pattern in _FOLDERS for run in folder.glob(pattern) if _models_in(run)})
    if not runs:
        places = "; ".join(f"{pattern} ({origin})" for pattern, origin in _FOLDERS.items())
        raise FileNotFoundError(
            f"checkpoint must be a global model or the folder of a run that has one, got {folder}, in which there is "
            f"neither {' nor '.join(_MODELS)} in {places}."
        )
    if len(runs) > 1:
        raise ValueError(
            f"checkpoint must be the folder of one run, got {folder} with {len(runs)} of them: "
            f"{', '.join(str(_models_in(run)[0]) for run in runs)}. Give one of these files."
        )
    return _models_in(runs[0])[0]


def _models_in(run: Path) -> list[Path]:
    return [run / name for name in _MODELS if (run / name).is_file()]


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
    In the bundle of a training the scores, which are those of other weights, are taken out of metadata and card.

    Args:
        checkpoint: see :func:`read_checkpoint`.
        model_file: file to write; replaced in one move.
        config_file: the bundle's training configuration, with the overlays of the run.

    Returns:
        ``model_file``.

    Raises:
        FileNotFoundError: When ``checkpoint`` or ``config_file`` is missing.
        ValueError: When the weights are not those of that network, a file is damaged, or ``model_file`` is that of the
            bundle of a training with other classes, or with other settings than the job's.
    """
    content = read_checkpoint(checkpoint)
    about = content["meta_props"]
    class_names = about["class_names"]
    check_trained_bundle(model_file, class_names, about.get("settings", {}))
    parser = open_configuration(config_file)
    parser["num_classes"], parser["num_channels"] = len(class_names), about.get("num_channels", 1)
    network = parser.get_parsed_content("network_def")
    if difference := shape_difference(content["model"], network.state_dict()):
        raise ValueError(
            f"checkpoint must hold the weights of network_def in {config_file}, got {checkpoint}, of which "
            f"{difference}. Pass the overlays of the run, and one with its settings of network_def, in --config_file."
        )
    network.load_state_dict(content["model"])
    written = write_model(network, model_file, class_names)
    done, planned = about.get("next_round", "some"), about.get("rounds", "some")
    note_other_weights(written, f"global model of a federation after {done} of {planned} rounds")
    return written
