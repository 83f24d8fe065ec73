"""What a training will do and take, from a few steps on this machine."""

from __future__ import annotations

import contextlib
import io
import math
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigParser

from dinomix_monai.bundle import prepare_volumes, token_cache_of
from dinomix_monai.core.text import by
from dinomix_monai.data import CaseCheck, Datalist
from dinomix_monai.run import check_counts
from dinomix_monai.volumes import first_file, open_volume, read_geometry

__all__ = ["TrainingPlan", "fitting_epochs", "plan_training"]


@dataclass(frozen=True)
class TrainingPlan:
    """
    What a training is going to do, and what a few of its steps took here.

    Args:
        what: lines of heading and text on data, patches, network, teacher.
        epochs: epochs of the run.
        steps_per_epoch: steps of an epoch.
        warm_up: share of the run without unlabeled patches.
        validations: validations of the run and the scoring after it.
        cases: validation cases.
        voxels: voxels of all training volumes, as they are cached.
        device: where it was measured.
        preparation_s_per_voxel: to check a training case, to load and cache it, and to compute its teacher tokens.
        step_s: a step without and a step with unlabeled patches.
        validation_s: a validation case.
        memory: peak memory in bytes, with the tokens that a GPU holds, a full donor bank, and all volumes, unless these
            are mapped from disk.
        disk: bytes on disk by what they are for.
        volumes: bytes of all preprocessed volumes.
        are_mapped: whether these are mapped from disk.
    """

    what: dict[str, str]
    epochs: int
    steps_per_epoch: int
    warm_up: float
    validations: int
    cases: int
    voxels: int
    device: str
    preparation_s_per_voxel: float
    step_s: tuple[float, float]
    validation_s: float
    memory: float
    disk: dict[str, float]
    volumes: float
    are_mapped: bool

    @property
    def seconds(self) -> dict[str, float]:
        """Expected duration of each part of the run."""
        steps = self.epochs * self.steps_per_epoch
        early = round(self.warm_up * steps)
        return {
            "preparation": self.preparation_s_per_voxel * self.voxels,
            "steps": early * self.step_s[0] + (steps - early) * self.step_s[1],
            "validation": self.validations * self.cases * self.validation_s,
        }

    @property
    def _volumes(self) -> str:
        if self.are_mapped:
            return f"volumes ({_size(self.volumes)}) are mapped from disk, as many in memory as there is room for"
        return f"{_size(self.volumes)} of it are all volumes, which memory_map.json maps from disk"

    def epochs_in(self, seconds: float) -> int:
        """
        Epochs that a time is enough for, with as many validations as this plan has.

        Raises:
            ValueError: When the time is too short for as many epochs as there are validations.
        """
        beside = self.seconds["preparation"] + self.seconds["validation"]
        early, late = (self.steps_per_epoch * step for step in self.step_s)
        return fitting_epochs(seconds, beside, (early, late), self.warm_up, self.validations)

    def __str__(self) -> str:
        steps = self.epochs * self.steps_per_epoch
        parts = ", ".join(f"{name} {_duration(seconds)}" for name, seconds in self.seconds.items())
        rows = {
            "steps": f"{self.epochs} epochs of {self.steps_per_epoch} = {steps}, the first {self.warm_up:.0%} without "
            "unlabeled patches",
            **self.what,
            "disk": ", ".join(f"{what} {_size(size)}" for what, size in self.disk.items()),
            "memory": f"{_size(self.memory)} at its peak at most, with a full donor bank; {self._volumes}",
            "a step": f"{self.step_s[0]:.3g} s without unlabeled patches, {self.step_s[1]:.3g} s with them",
            "duration": f"{_duration(sum(self.seconds.values()))}: {parts}",
            "measured": f"now, on {self.device}; for another device nothing is known until this has run there",
        }
        width = max(map(len, rows))
        return "\n".join(f"{name:<{width}}  {text}" for name, text in rows.items())


def fitting_epochs(seconds: float, beside_s: float, epoch_s: tuple[float, float], warm_up: float, at_least: int) -> int:
    """
    Epochs that a time is enough for, to the nearest whole number.

    Args:
        seconds: the time.
        beside_s: what a run takes beside its epochs.
        epoch_s: an epoch without and one with unlabeled patches.
        warm_up: share of the epochs without.
        at_least: epochs that a run must have.

    Raises:
        ValueError: When the time is too short for ``at_least``.

    Example:
        >>> fitting_epochs(100, beside_s=20, epoch_s=(4, 12), warm_up=0.25, at_least=8)
        8
    """
    epoch = warm_up * epoch_s[0] + (1 - warm_up) * epoch_s[1]
    epochs = round((seconds - beside_s) / epoch)
    if epochs < at_least:
        raise ValueError(
            f"The time must be enough for {at_least} epochs, at least {_duration(beside_s + at_least * epoch)} here, "
            f"got {_duration(seconds)}. Make the patches smaller, or the voxels larger."
        )
    return epochs


def plan_training(parser: ConfigParser, repetitions: int = 6) -> TrainingPlan:
    """
    Plans the training that a configuration of the bundle describes.

    It caches a labeled, an unlabeled and a validation case, computes their teacher tokens, takes a few steps of each
    kind and a validation, all of it in a temporary folder, and throws it away. What depends on the number of volumes
    is scaled by their voxels, which their headers tell.

    Args:
        parser: the configuration with all overlays and settings; it is changed.
        repetitions: steps of each kind to time.

    Raises:
        ValueError: When ``repetitions`` is less than 1.
    """
    if repetitions < 1:
        raise ValueError(f"repetitions must be >= 1, got {repetitions}.")
    get = parser.get_parsed_content
    counts = ("epochs", "steps_per_epoch", "labeled_batch_size", "unlabeled_batch_size", "val_interval")
    check_counts(**{name: get(name) for name in counts})
    epochs, steps_per_epoch, warm_up, interval = (
        get(n) for n in ("epochs", "steps_per_epoch", "warm_up", "val_interval")
    )
    datalist, spacing_mm, patch_size = get("datalist"), get("spacing_mm"), get("patch_size")
    shapes = {
        name: [_cached_shape(first_file(case["image"]), spacing_mm, patch_size) for case in getattr(datalist, name)]
        for name in (*_SECTIONS.values(), "validation")
    }
    # A whole number of the steps that distill and those that do not, after two that fill caches.
    every = get("distiller#interval")
    count = every * math.ceil(repetitions / every)
    with tempfile.TemporaryDirectory() as folder:
        parser.update(
            {
                **{f"train#{name}#data": f"$@datalist.{section}[:1]" for name, section in _SECTIONS.items()},
                "validate#dataset#data": "$@datalist.validation[:1]",
                **{"epochs": 2, "steps_per_epoch": count + 2, "warm_up": 0.5, "val_interval": 2},
                **{"output_dir": folder, "token_cache#folder": str(Path(folder) / "tokens")},
            }
        )
        measured = _measure(parser, count)
        # What grows after a few steps, at its end and as measured.
        grown, mix = 0.0, get("mix")
        if mix is not None:
            grown += mix.mixer.bank.most_nbytes - mix.mixer.bank.nbytes
        files = {"best model": get("model_file"), "state to resume": get("state_file")}
        disk = {what: float(Path(file).stat().st_size) for what, file in files.items()}
    if (token_cache := token_cache_of(parser)) is not None:
        all_shapes = [shape for name in _SECTIONS.values() for shape in shapes[name]]
        disk["token cache"] = _token_cache_size(token_cache, all_shapes)
        if token_cache.device.type != "cpu":
            used = _token_cache_size(token_cache, all_shapes, in_use=True)
            bound = math.inf if token_cache.device_gb is None else 1e9 * token_cache.device_gb
            grown += min(used, bound) - token_cache.device_bytes
    voxels, seen = (
        sum(math.prod(shape) for name in _SECTIONS.values() for shape in shapes[name][:number]) for number in (None, 1)
    )
    # An image in single precision, of each channel, and a label where there is one; measured with one of each list.
    volumes, measured_volumes = (
        sum(
            (4.0 * datalist.num_channels + (name != "unlabeled")) * math.prod(shape)
            for name, some in shapes.items()
            for shape in some[:number]
        )
        for number in (None, 1)
    )
    if is_kept := get("volume_dir") is not None:
        disk["preprocessed volumes"] = volumes
    are_mapped = is_kept and torch.device(get("volume_device")).type == "cpu"
    if not are_mapped:
        grown += volumes - measured_volumes
    return TrainingPlan(
        what=_what(parser),
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        warm_up=warm_up,
        validations=epochs // interval + 1,
        cases=len(datalist.validation),
        voxels=voxels,
        device=measured["device"],
        preparation_s_per_voxel=measured["preparation_s"] / seen,
        step_s=measured["step_s"],
        validation_s=measured["validation_s"],
        memory=measured["memory"] + grown,
        disk=disk,
        volumes=volumes,
        are_mapped=are_mapped,
    )


# The data sets of training, and the lists that their cases stand in.
_SECTIONS = {"dataset": "training", "unlabeled_dataset": "unlabeled"}


def _what(parser: ConfigParser) -> dict[str, str]:
    get = parser.get_parsed_content
    datalist, network = get("datalist"), get("network")
    spacing = "the files' own spacing" if min(get("spacing_mm")) <= 0 else f"{by(get('spacing_mm'))} mm"
    parameters = sum(parameter.numel() for parameter in network.parameters())
    what = {
        "data": f"{datalist.describe()} cases in {get('dataset_dir')}",
        "a batch": f"{get('labeled_batch_size')} labeled and {get('unlabeled_batch_size')} unlabeled patches of "
        f"{by(get('patch_size'))} voxels of {spacing}",
        "network": f"{type(network).__name__}, {parameters / 1e6:.3g} M parameters",
    }
    return {**what, "teacher": get("teacher").describe()} if get("distillation_weight") else what


def _token_cache_size(token_cache: Any, shapes: Sequence[Sequence[int]], in_use: bool = False) -> float:
    """Bytes of all tokens in half precision, in full and by their components, or as they are in use."""
    cells = sum(math.prod(math.ceil(side / cell) for side, cell in zip(shape, token_cache.cell)) for shape in shapes)
    channels = token_cache.slice_tokens.embed_dim + (token_cache.components or 0)
    return 2.0 * cells * (token_cache.embed_dim if in_use else channels)


def _measure(parser: ConfigParser, count: int) -> dict[str, Any]:
    """Two epochs of a training, the first without unlabeled patches; of each the last ``count`` steps count."""
    device = torch.device(parser.get_parsed_content("device"))
    # The bars of a training that is none would mislead.
    with contextlib.redirect_stderr(io.StringIO()):
        start = time.perf_counter()
        if parser.get_parsed_content("check_data"):
            _check_first(parser.get_parsed_content("datalist"))
        prepare_volumes(parser)
        preparation = _now(device) - start
        trainer = parser.get_parsed_content("train#trainer")
        validator = parser.get_parsed_content("validate#evaluator")
        times: list[float] = []
        trainer.add_event_handler(Events.ITERATION_STARTED, lambda: times.append(-_now(device)))
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: times.append(_now(device)))
        spans: list[float] = []
        validator.add_event_handler(Events.STARTED, lambda: spans.append(-_now(device)))
        validator.add_event_handler(Events.COMPLETED, lambda: spans.append(_now(device)))
        trainer.run()
    steps = np.reshape(times, (2, -1, 2)).sum(2)[:, -count:]
    if device.type == "cuda":
        name, memory = torch.cuda.get_device_name(device), float(torch.cuda.max_memory_allocated(device))
    else:
        name, memory = f"{torch.get_num_threads()} CPU threads", _peak_memory()
    return {
        "device": name,
        "memory": memory,
        "preparation_s": preparation,
        # The mean, because steps that distill take longer than those between them.
        "step_s": tuple(steps.mean(1).tolist()),
        "validation_s": sum(spans),
    }


def _check_first(datalist: Datalist) -> None:
    """Reads what the check of the data reads of the first case of each list."""
    check = CaseCheck(datalist.num_classes, partial_labels=datalist.partial_labels)
    for section in _SECTIONS.values():
        for case in getattr(datalist, section)[:1]:
            check(section, case)


def _peak_memory() -> float:
    import resource  # not on every system that trains

    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _cached_shape(image: str | os.PathLike, spacing_mm: Sequence[float], patch_size: Sequence[int]) -> list[int]:
    """Voxels of a volume on the grid of training, at least a patch."""
    sides = read_geometry(open_volume(image).header).resampled(spacing_mm)
    return [max(side, patch) for side, patch in zip(sides, patch_size)]


def _size(size: float) -> str:
    return f"{size / 1e9:.2g} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )
