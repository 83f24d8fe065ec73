"""Settings of a training for a data set, each with its reason."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dinomix_monai.core.text import by
from dinomix_monai.planning.calibration import Calibration
from dinomix_monai.planning.fingerprint import DatasetFingerprint

__all__ = ["DatasetPlan", "plan_dataset"]

# More voxels of the smallest class than these bring less than the steps that they cost.
_ENOUGH_VOXELS = 1000
# With fewer, a class is a few cells of the network's coarser levels, and is often missed.
_FEW_VOXELS = 100
# A patch shows a seventh of a scan at least, so that organs have their surroundings.
_PATCHES_OF_SCAN = 7
# And half of one at most: patches of whole small scans all look alike, and two halves make more steps.
_LARGEST_SHARE = 0.5
# Of a scan of the whole body that is longer, so much counts.
_FIELD_MM = 500.0
_LEVELS = 4
# An axis is not halved where a voxel is longer than this many of the finest axis.
_ANISOTROPIC = 2.0
# That of ``distiller#modules`` in train.json.
_TAUGHT_LEVEL = 1
# Share of the organs' range of intensities that is added on either side: what lies around them has to stand out.
_MARGIN = 0.25
_AS_IN_CT = (
    "Intensities mean the same in all scans, as in CT ({}): 99 % of the organs' voxels are inside, and a quarter more "
    "on either side, where scans have more."
)
_AS_IN_MR = "Intensities mean something else in each scan, as in MR ({}): each is scaled by its own percentiles."
_SIDE = re.compile(r"(?:^|[^a-z])(?:left|right|l|r|lt|rt)(?:$|[^a-z])", re.IGNORECASE)


@dataclass
class DatasetPlan:
    """
    Settings of ``train.json`` for a data set, by their ids, and the reason of each.

    Args:
        settings: values by id.
        reasons: for each of these ids, why, as a sentence.
        warnings: what the scans or the budget do not allow, as sentences.
        doubts: of ids that may have to be set otherwise, when and how, as sentences.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    doubts: dict[str, str] = field(default_factory=dict)

    def set(self, name: str, value: Any, reason: str, doubt: str = "") -> None:
        """Adds a setting."""
        self.settings[name], self.reasons[name] = value, reason
        if doubt:
            self.doubts[name] = doubt

    def overlay(self, title: str) -> dict[str, Any]:
        """An overlay for ``train.json``, with the reasons in its ``_desc_``."""
        notes = {
            name: " ".join([reason, *self._doubts(name)])
            for name, reason in self.reasons.items()
            if name in self.settings
        }
        return {"_desc_": {"plan": title, **notes}, **self.settings}

    def __str__(self) -> str:
        lines = [
            line for name, value in self.settings.items() for line in (f"{name}: {value}", f"    {self.reasons[name]}")
        ]
        return "\n".join([*lines, *(f"Warning: {warning}" for warning in self.all_warnings())])

    def all_warnings(self) -> list[str]:
        """The warnings, and the doubts about those settings that are there."""
        return [*self.warnings, *(doubt for name in self.settings for doubt in self._doubts(name))]

    def _doubts(self, name: str) -> list[str]:
        return [self.doubts[name]] if name in self.doubts else []


def plan_dataset(
    scans: DatasetFingerprint,
    patch_voxels: tuple[int, str],
    stem_stride: int = 2,
    is_calibrated: Sequence[bool] | None = None,
    spacing_mm: Sequence[float] | None = None,
) -> DatasetPlan:
    """
    Chooses voxel size, patch, strides, intensities, flips and the cells of the teacher.

    The voxel size is the scans' median one, made coarser where more voxels would not be worth their steps: the smallest
    class keeps a thousand, or a scan has seven patches. Finer axes are made coarser first, so anisotropy is kept or
    becomes less, never more.

    Args:
        scans: what the scans are like.
        patch_voxels: voxels that a patch may have, and why, see :func:`patch_budget`.
        stem_stride: stride of the network's stem along the finest axis.
        is_calibrated: for each channel, whether one intensity means the same tissue in all scans; as the scans show it
            if not given.
        spacing_mm: voxel size that is given; chosen here if not.
    """
    plan = DatasetPlan()
    spacing = _plan_spacing(plan, scans, patch_voxels[0], spacing_mm)
    strides = _strides(spacing, _field(scans) / spacing, stem_stride)
    _plan_patch(plan, scans, spacing, strides, patch_voxels)
    _plan_network(plan, strides)
    given = None if is_calibrated is None else [Calibration(is_same, "as given") for is_same in is_calibrated]
    _plan_intensity(plan, scans, scans.calibrations if given is None else given)
    sided = [name for name in scans.class_names[1:] if _SIDE.search(name)]
    plan.set(
        "flip_prob",
        [0.0 if sided else 0.5, 0.0, 0.0],
        f"Left and right differ: {', '.join(sided[:4])}{' ...' if len(sided) > 4 else ''}."
        if sided
        else "No class is named by its side, so scans may be mirrored from left to right.",
    )
    return plan


def _plan_spacing(
    plan: DatasetPlan, scans: DatasetFingerprint, patch_voxels: int, given: Sequence[float] | None
) -> np.ndarray:
    median, name = scans.spacing_mm, scans.class_names[scans.smallest_class]
    smallest = float(scans.class_mm3[scans.smallest_class - 1])
    extent = float(np.prod(_field(scans)))
    limits = {
        "the scans' median": float(np.prod(median)),
        f"coarser than the scans', with {_ENOUGH_VOXELS} voxels for {name}": smallest / _ENOUGH_VOXELS,
        "coarser than the scans', so that a patch shows a seventh of one": extent / (_PATCHES_OF_SCAN * patch_voxels),
    }
    why = max(limits, key=limits.__getitem__)
    spacing = _rounded(_coarsened(median, limits[why]))
    if given is not None:
        # An axis that is not resampled keeps its own size.
        spacing = np.where(np.asarray(given) > 0, given, median).astype(float)
    kept = smallest / float(np.prod(spacing))
    plan.set(
        "spacing_mm",
        spacing.tolist(),
        f"{why[0].upper()}{why[1:]} ({by(_rounded(median))} mm); {name}, the smallest class, has {kept:.0f} voxels.",
    )
    if kept < _FEW_VOXELS:
        remedy = (
            "Only finer scans would change it."
            if np.prod(spacing) < 1.01 * np.prod(median)
            else "Train on a GPU, or with more memory (--memory_gb)."
        )
        plan.warnings.append(f"{name} has {kept:.0f} voxels at this voxel size and may be missed. {remedy}")
    return spacing


def _field(scans: DatasetFingerprint) -> np.ndarray:
    """The extent of a scan along each axis, as far as organs have to do with one another."""
    return np.minimum(scans.extent_mm, _FIELD_MM)


def _coarsened(spacing: np.ndarray, voxel_mm3: float) -> np.ndarray:
    """The finest axes are made coarser, together, up to the next one, until a voxel is so large."""
    result = spacing.astype(float)
    order = np.argsort(result)
    for count in range(1, len(order) + 1):
        growing, others = order[:count], order[count:]
        wanted = (voxel_mm3 / np.prod(result[others])) ** (1 / count)
        limit = result[others[0]] if len(others) else np.inf
        result[growing] = np.maximum(result[growing], min(wanted, limit))
        if wanted <= limit:
            break
    return result


def _rounded(spacing: np.ndarray) -> np.ndarray:
    return np.array([float(f"{size:.3g}") for size in spacing])


def _strides(spacing: np.ndarray, shape: np.ndarray, stem_stride: int) -> list[list[int]]:
    """Strides of the stem and between the levels; an axis is halved while it is as fine as the others, and long."""
    strides, present, total = [], spacing.copy(), np.ones(3)
    for step in (stem_stride, *[2] * (_LEVELS - 1)):
        halved = (present < _ANISOTROPIC * present.min() - 1e-6) & (shape >= 2 * total * step)
        strides.append(np.where(halved, step, 1).tolist())
        present, total = present * strides[-1], total * strides[-1]
    return strides


def _plan_patch(
    plan: DatasetPlan,
    scans: DatasetFingerprint,
    spacing: np.ndarray,
    strides: Sequence[Sequence[int]],
    budget: tuple[int, str],
) -> None:
    multiple = np.prod(strides, axis=0)
    shape = _field(scans) / spacing
    half = _LARGEST_SHARE * float(np.prod(shape))
    voxels, why = budget if budget[0] <= half else (half, "half of its voxels, so that patches differ")
    # Two of the lowest level's voxels at least: one has no variance to normalize by.
    least = multiple * np.where(multiple > 1, 2, 1)
    most = np.maximum(np.round(shape / multiple) * multiple, least)
    sides = [np.arange(low, high + 1, step).astype(int) for low, high, step in zip(least, most, multiple)]
    fitting = [patch for patch in itertools.product(*sides) if math.prod(patch) <= voxels] or [tuple(least)]
    # The axis of which a patch shows least shows as much as it can; then the largest patch.
    patch = max(fitting, key=lambda one: (np.min(np.array(one) / shape), math.prod(one)))
    plan.set(
        "patch_size",
        [int(side) for side in patch],
        f"In the proportions of a scan ({by(np.round(shape))} voxels), within {why}, multiples of the strides.",
    )


def _plan_network(plan: DatasetPlan, strides: Sequence[Sequence[int]]) -> None:
    stem, *steps = strides
    plan.set(
        "network_def#stem_stride",
        stem,
        f"An axis is halved while its voxels are shorter than {_ANISOTROPIC:g} of the finest.",
    )
    plan.set("network_def#strides", steps, "Likewise, from level to level.")
    totals = np.cumprod(strides, axis=0)
    # The level with voxels of 4 of the finest axis, as in train.json and synapse.json.
    level = int(np.argmax(totals.max(axis=1) >= 4))
    cell = by(totals[level])
    plan.set("token_cell", totals[level].tolist(), f"A token for each cell of decoder.{level}, of {cell} voxels.")
    if level != _TAUGHT_LEVEL:
        plan.set("distiller#modules", [f"decoder.{level}"], f"It has cells of {cell} voxels.")


def _plan_intensity(plan: DatasetPlan, scans: DatasetFingerprint, calibrations: Sequence[Calibration]) -> None:
    windows = [
        _window(foreground, ranges) if found.is_calibrated else None
        for found, foreground, ranges in zip(calibrations, scans.foreground, scans.ranges.swapaxes(0, 1))
    ]
    reasons = [(_AS_IN_CT if found.is_calibrated else _AS_IN_MR).format(found.reason) for found in calibrations]
    doubt = " ".join(_doubt(channel, scans.channel_names, calibrations) for channel in range(len(windows))).strip()
    if len(windows) == 1:
        plan.set("intensity_window", windows[0], reasons[0], doubt)
    else:
        named = " ".join(f"{name}: {reason}" for name, reason in zip(scans.channel_names, reasons))
        plan.set("intensity_window", windows, named, doubt)


def _doubt(channel: int, names: Sequence[str], calibrations: Sequence[Calibration]) -> str:
    """What a channel may be otherwise, as a sentence; empty where nothing tells so."""
    if not calibrations[channel].doubt:
        return ""
    kinds = ["CT" if found.is_calibrated or other == channel else "MR" for other, found in enumerate(calibrations)]
    of = f" of {names[channel]}" if len(names) > 1 else ""
    return (
        f"Intensities{of} {calibrations[channel].doubt}: they may be those of CT, and are taken for MR. If they are "
        f"CT, pass --modality {','.join(kinds)} (the setting plan#modality), or call the channel CT in dataset.json."
    )


def _window(foreground: np.ndarray, ranges: np.ndarray) -> list[float]:
    """From percentiles of the organs and the range of each scan."""
    wider = _MARGIN * (foreground[1] - foreground[0])
    least, most = np.median(ranges, axis=0)
    low, high = max(foreground[0] - wider, least), min(foreground[1] + wider, most)
    return [float(f"{end:.4g}") for end in (low, high)]
