"""From a configuration and the scans that it names to an overlay."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from dinomix_monai.bundle import config_files
from dinomix_monai.core.files import set_aside, write_json
from dinomix_monai.planning import VALIDATIONS, DatasetPlan, PlannedSettings, means_the_same
from dinomix_monai.training_plan import plan_training

__all__ = ["configure_training"]


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
        modality: see :func:`means_the_same`; ``None`` to let the intensities tell.
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
    means_the_same(modality)
    if hours is not None and not hours > 0:
        raise ValueError(f"hours must be above 0, got {hours}.")
    given = dict(given or {})
    # Whatever the settings of an overlay went by.
    options = {"memory_gb": memory_gb, "modality": modality}
    asked = {"planned_for": parser.get("dataset_dir"), **{f"plan#{name}": value for name, value in options.items()}}
    parser.update(asked)
    planned: PlannedSettings = parser.get_parsed_content("plan")
    plan = planned.plan(given.get("spacing_mm"), given.get("epochs"))
    if hours is not None:
        _fit_length(plan, planned, parser, hours, given)
    for name in given:
        plan.settings.pop(name, None)
        plan.reasons.pop(name, None)
    set_aside(path)
    write_json(path, plan.overlay(f"Made by configure for {planned.datalist.describe()} cases."))
    configs = ",".join(f"'{name}'" for name in (*config_files(config_file), path))
    options = {"dataset_dir": parser.get("dataset_dir"), "output_dir": "OUT", **given}
    typed = " ".join(f"--{shlex.quote(name)} {shlex.quote(str(value))}" for name, value in options.items())
    line = f'python -m monai.bundle run training --config_file "[{configs}]" {typed}'
    return f"{plan}\n\n{path} is written. To train with it:\n{line}"


def _fit_length(
    plan: DatasetPlan, planned: PlannedSettings, parser: ConfigParser, hours: float, given: Mapping[str, Any]
) -> None:
    settings = {name: value for name, value in plan.settings.items() if name not in given}
    parser.update({**settings, "epochs": 10 * VALIDATIONS, "val_interval": 10})
    timed = plan_training(parser)
    early, late = timed.step_s
    reason = (
        f"What fits into {hours:g} hours on {timed.device}: a step takes {early:.2g} s without and {late:.2g} s "
        "with unlabeled patches."
    )
    planned.set_length(plan, timed.epochs_in(3600 * hours), reason)
