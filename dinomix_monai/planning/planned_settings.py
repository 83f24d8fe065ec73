"""The settings of a training that go by its scans, as ``train.json`` asks for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from dinomix_monai.data import Datalist, open_datalist, verify_dataset
from dinomix_monai.planning.dataset_plan import DatasetPlan, plan_dataset
from dinomix_monai.planning.fingerprint import DatasetFingerprint, take_fingerprint
from dinomix_monai.planning.memory import patch_budget

__all__ = ["VALIDATIONS", "PlannedSettings", "means_the_same", "print_plan"]

_T = TypeVar("_T")

# Of the settings of components; that of another one is its name.
_IDS = {
    "strides": "network_def#strides",
    "stem_stride": "network_def#stem_stride",
    "modules": "distiller#modules",
    "decay": "ema_teacher#decay",
}
_CALIBRATED = {"CT": True, "MR": False, "PET": False}
# Steps of a first training, where no time is given.
_STEPS = {"cpu": 2000, "cuda": 12000}
VALIDATIONS = 8
"""Validations of a planned run."""
# From so many steps on, the EMA teacher remembers longer, as in synapse.json.
_LONG = 4000


class PlannedSettings:
    """
    Settings of a training: those of the phantom, or for other scans what a plan makes of them.

    A configuration asks for each of its settings, ``$@plan('patch_size', @spacing_mm)``, so one that an overlay or the
    command line gives another value is not asked for, and what depends on the voxel size goes by the given one. Scans
    are looked at when the first setting is asked for, and never where all are given.

    Args:
        dataset_dir: the data set that settings go by; ``None``, or ``"none"`` as a command line gives it, for those of
            the phantom, whatever is trained on.
        phantom: settings of the phantom by the last part of their ids, all that there are; also for what a plan leaves
            as it is.
        device: device of the training.
        steps_per_epoch: steps of an epoch.
        phantom_dir: see :func:`dinomix_monai.data.open_datalist`.
        file: likewise.
        allow_outside: likewise.
        check_data: whether scans that cannot be read have all that is wrong with the data set named.
        memory_gb: see :func:`patch_budget`.
        modality: see :func:`means_the_same`; ``None`` to let the intensities tell.

    Attributes:
        asked: the settings that were asked for, by their ids.

    Raises:
        ValueError: When ``modality`` is none.
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike | None,
        phantom: Mapping[str, Any],
        device: torch.device | str,
        steps_per_epoch: int,
        phantom_dir: str | os.PathLike | None = None,
        file: str = "dataset.json",
        allow_outside: bool = False,
        check_data: bool = True,
        memory_gb: float | None = None,
        modality: str | Sequence[str] | None = None,
    ) -> None:
        self.dataset_dir, self.phantom_dir = None if dataset_dir == "none" else dataset_dir, phantom_dir
        self.check_data = check_data
        self.phantom, self.device = dict(phantom), torch.device(device)
        self.steps_per_epoch, self.memory_gb = steps_per_epoch, memory_gb
        means_the_same(modality)
        self.modality = modality
        self.asked: dict[str, Any] = {}
        self._list: dict[str, Any] = {
            "dataset_dir": dataset_dir,
            "phantom_dir": phantom_dir,
            "file": file,
            "allow_outside": allow_outside,
        }
        self._plans: dict[tuple[tuple[float, ...] | None, int | None], DatasetPlan] = {}

    def __call__(self, name: str, spacing_mm: Sequence[float] | None = None, epochs: int | None = None) -> Any:
        """
        The value of a setting.

        Args:
            name: the last part of its id.
            spacing_mm: voxel size that it goes by; the planned one if not given.
            epochs: length that it goes by; likewise.

        Raises:
            KeyError: When there is no such setting.
            FileNotFoundError: As :func:`dinomix_monai.data.open_datalist`.
            ValueError: Likewise, and when the scans allow no plan, see :func:`take_fingerprint` and
                :func:`patch_budget`.
        """
        value, config_id = self.phantom[name], _IDS.get(name, name)
        if self.is_planned:
            value = self.plan(spacing_mm, epochs).settings.get(config_id, value)
        self.asked[config_id] = value
        return value

    @cached_property
    def is_planned(self) -> bool:
        """Whether the settings go by the scans."""
        # The phantom may not be there yet, and is not made before it is needed.
        return self.dataset_dir not in (None, self.phantom_dir) and not self.datalist.is_phantom

    @cached_property
    def datalist(self) -> Datalist:
        """The cases of the data set."""
        return self._checked(lambda: open_datalist(**self._list))

    @cached_property
    def _scans(self) -> DatasetFingerprint:
        datalist = self.datalist
        return self._checked(lambda: take_fingerprint(datalist))

    def _checked(self, read: Callable[[], _T]) -> _T:
        try:
            return read()
        except (OSError, ValueError, RuntimeError):
            if self.check_data:
                # Names all that is wrong, and not the first thing alone.
                verify_dataset(**self._list)
            raise

    def plan(self, spacing_mm: Sequence[float] | None = None, epochs: int | None = None) -> DatasetPlan:
        """
        All settings for the scans, with their reasons; for the phantom, too.

        Args:
            spacing_mm: voxel size that is given.
            epochs: length that is given.

        Raises:
            ValueError: As by a call.
        """
        given = None if spacing_mm is None else tuple(map(float, spacing_mm))
        key = (given, epochs)
        if key not in self._plans:
            # Full resolution is for a GPU.
            stem_stride = 1 if self.device.type == "cuda" else 2
            budget = patch_budget(self.device, self.datalist.num_classes, stem_stride, self.memory_gb)
            is_calibrated = means_the_same(self.modality, self.datalist.num_channels)
            plan = plan_dataset(self._scans, budget, stem_stride, is_calibrated, given)
            if epochs is None:
                steps = _STEPS.get(self.device.type, _STEPS["cpu"])
                epochs = max(VALIDATIONS, round(steps / self.steps_per_epoch))
            steps = epochs * self.steps_per_epoch
            self.set_length(plan, epochs, f"{steps} steps for a first training; configure --hours fits them to a time.")
            self._plans[key] = plan
        return self._plans[key]

    def made(self, spacing_mm: Sequence[float] | None = None, epochs: int | None = None) -> DatasetPlan:
        """
        The settings that were asked for and go by the scans, with their reasons and what may be wrong with them.

        Args:
            spacing_mm: voxel size of the training, where it was not asked for.
            epochs: length of the training, where it was not asked for.
        """
        if not self.is_planned:
            return DatasetPlan()
        plan = self.plan(None if "spacing_mm" in self.asked else spacing_mm, None if "epochs" in self.asked else epochs)
        return replace(plan, settings={name: value for name, value in plan.settings.items() if name in self.asked})

    def set_length(self, plan: DatasetPlan, epochs: int, reason: str) -> None:
        """Sets the epochs of a plan, and what depends on them."""
        plan.set("epochs", epochs, reason)
        plan.set("val_interval", max(1, epochs // VALIDATIONS), f"{VALIDATIONS} validations of the run.")
        if epochs * self.steps_per_epoch >= _LONG:
            plan.set("ema_teacher#decay", 0.99, "The EMA teacher remembers longer in a long run.")


def means_the_same(modality: str | Sequence[str] | None, channels: int | None = None) -> list[bool] | None:
    """
    Whether one intensity means the same tissue in all scans of a modality; ``None`` where none is given.

    Args:
        modality: ``CT``, ``MR`` or ``PET`` for all channels, or one of them for each, in a list or with commas between.
        channels: how many there are; ``None`` to take what is given.

    Raises:
        ValueError: When it is none of these, or has an entry for as many channels as there are not.
    """
    if modality is None:
        return None
    given = [str(one).strip().upper() for one in (modality.split(",") if isinstance(modality, str) else modality)]
    if not given or any(one not in _CALIBRATED for one in given):
        raise ValueError(
            f"modality must be one of {', '.join(_CALIBRATED)}, or one for each channel with commas between, got "
            f"{modality}."
        )
    if channels is not None and len(given) not in (1, channels):
        raise ValueError(
            f"modality must be one for all channels, or one for each of {channels}, got {', '.join(given)}."
        )
    found = [_CALIBRATED[one] for one in given]
    return found * (channels or 1) if len(found) == 1 else found


def print_plan(plan: PlannedSettings, spacing_mm: Sequence[float], epochs: int, settings: Sequence[Any]) -> None:
    """
    Prints the settings that go by the scans, with their reasons; nothing where none does.

    Args:
        plan: the settings.
        spacing_mm: voxel size of the training.
        epochs: its length.
        settings: values of all settings. They are not used: a configuration that passes them has asked for those that
            are not given.
    """
    if not plan.asked:
        return
    made = plan.made(spacing_mm, int(epochs))
    if made.settings:
        print(f"Settings for {plan.datalist.describe()} cases; one that you give wins.", flush=True)
    if str(made):
        print(made, flush=True)
