"""The folder of an app: its configuration, its current model and its trainings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinomix_monai.bundle import Bundle
from dinomix_monai.core.files import write_json
from dinomix_monai.models import probe_path, read_class_names, read_model, write_class_names

__all__ = ["AppFolder", "prepare_app_folder"]

_MAIN = '"""MONAI Label looks for the app here."""\n\nfrom dinomix_monai.label.app import DinoMixApp  # noqa: F401\n'
_CONFIGS = ("train.json", "finetune.json", "inference.json", "metadata.json")
_DESCRIPTION = "A patch of train.json and inference.json for this app; edit it and start anew."


@dataclass(frozen=True)
class AppFolder:
    """
    A bundle of its own with what MONAI Label needs beside it.

    ``configs/`` is a copy of the bundle's, ``settings.json`` patches it, ``models/`` has the current model
    (``model.pt``), the probe of its frozen teacher if it has one (``model.probe.pt``) and the classes
    (``labels.json``), and ``runs/`` what trainings wrote.

    Args:
        root: the folder.
    """

    root: Path

    @property
    def settings_file(self) -> Path:
        """The app's own values of the bundle's ids."""
        return self.root / "settings.json"

    @property
    def model_file(self) -> Path:
        """Weights that inference uses; missing until there is a model."""
        return self.root / "models" / "model.pt"

    @property
    def model_stamp(self) -> int:
        """Changes with the model; 0 without one."""
        return self.model_file.stat().st_mtime_ns if self.model_file.is_file() else 0

    @property
    def runs(self) -> Path:
        """Folder of the trainings, each in one that is named by its time."""
        return self.root / "runs"

    @property
    def class_names(self) -> list[str]:
        """Names by label value, background first."""
        return read_class_names(self.model_file)

    @property
    def metadata(self) -> dict[str, Any]:
        """The bundle's metadata, with the classes of the app."""
        return json.loads((self.root / "configs" / "metadata.json").read_text(encoding="utf-8"))

    @property
    def bundle(self) -> Bundle:
        """The bundle that the folder is, with the app's own settings."""
        return Bundle(self.root, self.settings_file)


def prepare_app_folder(
    root: str | Path,
    bundle: str | Path,
    model: str | Path | None = None,
    labels: Sequence[str] | None = None,
    settings: dict[str, Any] | None = None,
    teacher_weights: str = "none",
) -> AppFolder:
    """
    Makes the folder of an app, or brings an existing one up to date with the bundle.

    Model, classes and settings are what a new app begins with. An app that has them keeps its own: a server that is
    started anew goes on with the model that it has trained.

    Args:
        root: folder of the app.
        bundle: folder of the bundle, of which the configs are copied.
        model: weights to begin with, with ``labels.json`` beside them; ``None`` to begin without a model.
        labels: names of the classes without background; by default those of the model, else the bundle's.
        settings: ids of the bundle's configuration with other values.
        teacher_weights: as the bundle's; ``none`` leaves feature distillation out, since an untrained teacher has
            nothing to teach.

    Raises:
        FileNotFoundError: When ``bundle`` is no bundle, or there is no such ``model``.
        ValueError: When the bundle is for images of several channels, ``labels`` are not those of the model, or its
            file or ``last/state.pt`` beside it is damaged.
    """
    folder = AppFolder(Path(root).expanduser().absolute())
    source = Bundle.find(bundle, "bundle")
    if (channels := source.parser("inference").get("num_channels")) != 1:
        raise ValueError(
            f"bundle must segment images of one channel, because MONAI Label has one file for each, got {channels} "
            f"channels in {source.root}. Use `predict` and `autolabel`."
        )
    is_new = not folder.model_file.with_name("labels.json").is_file()
    names = _class_names(folder, model, labels) if is_new else folder.class_names
    for name in ("configs", "models", "runs", "tmp"):
        (folder.root / name).mkdir(parents=True, exist_ok=True)
    if is_new:
        if model is not None:
            _copy_model(Path(model).expanduser(), folder)
        write_class_names(folder.model_file, names)
    for name in _CONFIGS:
        shutil.copyfile(source.configs / name, folder.root / "configs" / name)
    _name_classes(folder.root / "configs" / "metadata.json", folder.class_names)
    if not folder.settings_file.is_file():
        teacher: dict[str, Any] = {"teacher_weights": teacher_weights}
        if teacher_weights == "none":
            teacher["distillation_weight"] = 0.0
        elif teacher_weights != "auto":
            teacher["teacher_weights"] = str(Path(teacher_weights).expanduser().absolute())
        content = {**teacher, **(settings or {}), "_desc_": _DESCRIPTION}
        write_json(folder.settings_file, content)
    (folder.root / "main.py").write_text(_MAIN, encoding="utf-8")
    return folder


def _class_names(folder: AppFolder, model: str | Path | None, labels: Sequence[str] | None) -> list[str]:
    given = None if labels is None else ["background", *labels]
    if model is None:
        return given or folder.class_names
    read_model(Path(model).expanduser(), "model")
    own = read_class_names(Path(model).expanduser())
    if given is not None and given != own:
        raise ValueError(
            f"labels must be those of the model, {', '.join(own[1:])}, got {', '.join(given[1:])}. "
            "For other classes begin without a model."
        )
    return own


def _copy_model(model: Path, folder: AppFolder) -> None:
    if probe_path(model).is_file():
        shutil.copyfile(probe_path(model), probe_path(folder.model_file))
    shutil.copyfile(model, folder.model_file)


def _name_classes(metadata_file: Path, class_names: Sequence[str]) -> None:
    metadata = json.loads(metadata_file.read_text(encoding="utf-8"))
    output = metadata["network_data_format"]["outputs"]["pred"]
    output["num_channels"] = len(class_names)
    output["channel_def"] = {str(value): name for value, name in enumerate(class_names)}
    write_json(metadata_file, metadata)
