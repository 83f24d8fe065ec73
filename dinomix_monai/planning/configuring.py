"""From a configuration and the scans that it names to an overlay."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from dinomix_monai.bundle import config_files
from dinomix_monai.core.files import set_aside, write_json
from dinomix_monai.planning.dataset_plan import DatasetPlan, plan_dataset
from dinomix_monai.planning.fingerprint import take_fingerprint
from dinomix_monai.planning.memory import patch_budget
from dinomix_monai.training_plan import plan_training

__all__ = ["configure_training"]

_CALIBRATED = {"CT": True, "MR": False}
# Steps of a first training, where no time is given.
_STEPS = {"cpu": 2000, "cuda": 12000}
_VALIDATIONS = 8
# From so many steps on, the EMA teacher remembers longer, as in synapse.json.
_LONG = 4000


def configure_training(
    parser: ConfigParser,
    out_file: str | Path,
    hours: float | None = None,
    memory_gb: float | None = None,
    modality: str | None = None,
    overwrite: bool = False,
    given: Mapping[str, Any] | None = None,
    config_file: str | Path | Sequence[str | Path] = "bundle/configs/train.json",
) -> str:
    """
    Plans a training for the data set of a configuration, and writes the plan as an overlay.

    Args:
        parser: the bundle's training configuration with its data set; it is changed.
        out_file: overlay to write.
        hours: length of the training on this machine, which a few steps are timed for.
        memory_gb: see :func:`patch_budget`.
        modality: ``CT``, ``MR``, or ``None`` to let the intensities tell.
        overwrite: whether a file that is there may be replaced; it is kept as ``*.previous.json``.
        given: ids that have values already; they stay, and what depends on them goes by them.
        config_file: the configuration's files, for the command in the answer.

    Returns:
        The settings with their reasons, and the command that trains with them.

    Raises:
        FileExistsError: When ``out_file`` is there.
        ValueError: When ``modality`` is none, the time or the memory is too little, or as :func:`take_fingerprint`.
    """
    path = Path(out_file).expanduser()
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"out_file must not be there yet, because nothing is replaced unasked, got {path}. Pass another name, or "
            "--overwrite True, which keeps it as *.previous.json."
        )
    if modality is not None and modality.upper() not in _CALIBRATED:
        raise ValueError(f"modality must be CT or MR, got {modality}.")
    if hours is not None and not hours > 0:
        raise ValueError(f"hours must be above 0, got {hours}.")
    given = dict(given or {})
    device, datalist = torch.device(parser.get_parsed_content("device")), parser.get_parsed_content("datalist")
    stem_stride = 1 if device.type == "cuda" else 2
    plan = plan_dataset(
        take_fingerprint(datalist),
        patch_budget(device, datalist.num_classes, stem_stride, memory_gb),
        stem_stride,
        None if modality is None else _CALIBRATED[modality.upper()],
        given.get("spacing_mm"),
    )
    _plan_length(plan, parser, device, hours, given)
    for name in given:
        plan.settings.pop(name, None)
        plan.reasons.pop(name, None)
    set_aside(path)
    write_json(path, plan.overlay(f"Made by configure for {datalist.describe()} cases."))
    configs = ",".join(f"'{name}'" for name in (*config_files(config_file), path))
    options = {"dataset_dir": parser.get("dataset_dir"), "output_dir": "OUT", **given}
    typed = " ".join(f"--{shlex.quote(name)} {shlex.quote(str(value))}" for name, value in options.items())
    line = f'python -m monai.bundle run training --config_file "[{configs}]" {typed}'
    return f"{plan}\n\n{path} is written. To train with it:\n{line}"


def _plan_length(
    plan: DatasetPlan, parser: ConfigParser, device: torch.device, hours: float | None, given: Mapping[str, Any]
) -> None:
    steps_per_epoch = int(parser.get_parsed_content("steps_per_epoch"))
    if hours is None:
        steps = _STEPS[device.type if device.type in _STEPS else "cpu"]
        epochs = max(_VALIDATIONS, round(steps / steps_per_epoch))
        reason = f"{epochs * steps_per_epoch} steps for a first training; --hours fits them to a time."
    else:
        settings = {name: value for name, value in plan.settings.items() if name not in given}
        parser.update({**settings, "epochs": 10 * _VALIDATIONS, "val_interval": 10})
        timed = plan_training(parser)
        epochs = timed.epochs_in(3600 * hours)
        early, late = timed.step_s
        reason = (
            f"What fits into {hours:g} hours on {timed.device}: a step takes {early:.2g} s without and {late:.2g} s "
            "with unlabeled patches."
        )
    plan.set("epochs", epochs, reason)
    plan.set("val_interval", max(1, epochs // _VALIDATIONS), f"{_VALIDATIONS} validations of the run.")
    if epochs * steps_per_epoch >= _LONG:
        plan.set("ema_teacher#decay", 0.99, "The EMA teacher remembers longer in a long run.")
