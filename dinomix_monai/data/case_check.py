"""What is wrong with one case."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes

from dinomix_monai.core.text import by
from dinomix_monai.data.datalist import HELD_OUT, SECTIONS
from dinomix_monai.data.finding import Finding
from dinomix_monai.volumes import (
    MOST_VOXELS,
    Geometry,
    PartialLabels,
    VolumeError,
    channel_files,
    channel_windows,
    image_values,
    is_by_model,
    is_label_map,
    label_orientation,
    label_values,
    open_volume,
    read_geometry,
)

__all__ = ["CaseCheck", "CaseReport"]

_OBLIQUE_DEGREES = 10.0
"""A patient who was meant to lie straight lies straighter than this."""

_OUTSIDE, _SPAN = 0.99, 0.05
"""A scan of the expected modality has a smaller share of its voxels outside of the window, and spans more of it."""


@dataclass
class CaseReport:
    """
    What the check of a case found.

    Args:
        section: list that the case is in.
        image: path of its image, of several channels that of the first one.
        findings: its problems.
        digest: SHA-256 of the image's voxels; ``None`` where they could not be read.
        classes: classes of its label; ``None`` where there is no label that could be read.
        looked_for: classes that somebody has looked for in it.
    """

    section: str
    image: str
    findings: list[Finding] = field(default_factory=list)
    digest: str | None = None
    classes: frozenset[int] | None = None
    looked_for: frozenset[int] = frozenset()

    def error(self, file: str, problem: str, remedy: str) -> None:
        """Adds a finding with which training must not begin."""
        self.findings.append(Finding("error", file, problem, remedy))

    def warn(self, file: str, problem: str, remedy: str) -> None:
        """Adds a finding with which training may begin."""
        self.findings.append(Finding("warning", file, problem, remedy))

    @contextmanager
    def reading(self, file: str) -> Iterator[None]:
        """Where the file turns out to be no volume, adds that as a finding and goes on behind the block."""
        try:
            yield
        except VolumeError as error:
            self.error(file, error.problem, error.remedy)


@dataclass(frozen=True)
class CaseCheck:
    """
    Reads the files of a case once and reports all that is wrong with them. A volume is never in memory as a whole.

    Args:
        num_classes: labels are whole numbers from 0 to below this.
        patch_size: voxels of a patch along the axes R, A and S; ``None`` for any.
        spacing_mm: voxel size that volumes are resampled to, along the same axes; ``None`` for their own, and so is,
            as in MONAI's ``Spacingd``, what is not above 0.
        intensity_window: least and greatest of the intensities that scaling maps to [0, 1], or a list with those of
            each channel; ``None`` where scaling adapts to each image.
        partial_labels: what of the label maps somebody has looked for; ``None`` where all are complete.

    Raises:
        ValueError: When ``patch_size`` does not have three numbers above 0, ``spacing_mm`` three numbers, or
            ``intensity_window`` is none, see :func:`channel_windows`.
    """

    num_classes: int
    patch_size: Sequence[int] | None = None
    spacing_mm: Sequence[float] | None = None
    intensity_window: Sequence | None = None
    partial_labels: PartialLabels | None = None

    def __post_init__(self) -> None:
        patch, spacing = self.patch_size, self.spacing_mm
        if patch is not None and (np.shape(patch) != (3,) or min(patch) <= 0):
            raise ValueError(f"patch_size must have three numbers above 0, got {patch}.")
        if spacing is not None and np.shape(spacing) != (3,):
            raise ValueError(f"spacing_mm must have three numbers, got {spacing}.")
        channel_windows(self.intensity_window)

    def __call__(self, section: str, case: Mapping[str, Any]) -> CaseReport:
        """
        Checks a case.

        Args:
            section: list that it is in.
            case: paths of ``image``, one or those of its channels, and, where it has one, ``label``.
        """
        files = channel_files(case["image"])
        report = CaseReport(section, files[0])
        place = None
        digests: dict[str, str] = {}
        for file, window in zip(files, channel_windows(self.intensity_window, len(files))):
            with report.reading(file):
                image = open_volume(file)
                lies = read_geometry(image.header)
                if is_label_map(image):
                    report.error(file, "is a label map, as its header says", "List the scan itself.")
                if place is None:
                    place = lies
                    self._check_geometry(report, place)
                elif label_orientation(lies, place) is None:
                    difference = lies.difference_from_image(place, "the first channel")
                    report.error(file, difference, "Resample all channels of an image to one grid.")
                digest = _check_intensities(report, file, image, window)
                if (other := digests.setdefault(digest, file)) != file:
                    report.error(file, f"has the voxels of {other}, another channel", "List the file of each channel.")
        if len(digests) == len(files):
            report.digest = _joined(list(digests))
        if "label" in case:
            self._check_label(report, case["label"], place)
        elif "label" in SECTIONS[section]:
            report.error(report.image, f"has no label under `{section}`", "Name one, or list it under `unlabeled`.")
        return report

    def label(self, image: str, file: str) -> CaseReport:
        """
        Checks a label map on the grid of its image, of which no voxel is read.

        Args:
            image: path of the image, of several channels that of the first one.
            file: path of the label map.
        """
        report = CaseReport("training", image)
        place = None
        with report.reading(image):
            place = read_geometry(open_volume(image).header)
        self._check_label(report, file, place)
        return report

    def _check_label(self, report: CaseReport, file: str, place: Geometry | None) -> None:
        with report.reading(file):
            label = open_volume(file)
            if place is not None:
                _check_grid(report, file, read_geometry(label.header), place)
            if report.section in HELD_OUT and is_by_model(label):
                problem = f"was drawn by a model, as its header says, and scores under `{report.section}`"
                report.warn(file, problem, "Let a person correct and save it, or list it under `training`.")
            self._check_classes(report, file, label)

    def _check_geometry(self, report: CaseReport, image: Geometry) -> None:
        if image.doubt is not None:
            report.warn(report.image, *image.doubt)
        if (degrees := _obliquity_degrees(image.affine)) > _OBLIQUE_DEGREES:
            problem = f"is oblique, {degrees:.0f} degrees off the axes of the body"
            report.warn(report.image, problem, "Make sure that all cases are, or resample it to straight axes.")
        shape = image.resampled([0.0] * 3 if self.spacing_mm is None else self.spacing_mm)
        if math.prod(shape) > MOST_VOXELS:
            problem = f"is {by(shape)} voxels when resampled"
            report.error(report.image, problem, "Correct the voxel size in its header, or set a coarser spacing_mm.")
            return
        if self.patch_size is not None and any(length < side for length, side in zip(shape, self.patch_size)):
            problem = f"is {by(shape)} voxels when resampled, less than a patch of {by(self.patch_size)}"
            report.warn(report.image, problem, "It will be padded; a smaller patch_size wastes less.")

    def _check_classes(self, report: CaseReport, file: str, label: nib.Nifti1Pair) -> None:
        partial = self.partial_labels
        annotation = None if partial is None else partial.annotations.get(file)
        has_ignore = partial is not None and partial.has_ignore
        values = label_values(label, self.num_classes + has_ignore)
        report.classes = values.classes - {self.num_classes}
        foreground = frozenset(range(1, self.num_classes))
        report.looked_for = foreground - (annotation.missing if annotation else frozenset())
        if annotation is not None and not values.strays:
            try:
                partial.coded(np.asanyarray(label.dataobj).reshape(label.shape[:3]), file)  # type: ignore[union-attr]
            except ValueError as error:
                report.error(file, f"contradicts the list: {error}", "Correct the list or the label map.")
        if values.strays:
            problem = f"has {values.strays} voxels of no class, from {values.low:g} to {values.high:g}"
            report.error(
                file, problem, f"Only the whole numbers 0 to {self.num_classes - 1} have a name in the datalist."
            )
        elif report.classes <= {0}:
            report.warn(file, "has nothing but background", "Make sure that this patient has none of the classes.")


def _check_intensities(report: CaseReport, file: str, image: nib.Nifti1Pair, window: tuple[float, float] | None) -> str:
    """What is wrong with the voxels of a channel; returns their digest."""
    values = image_values(image, window)
    if values.not_finite:
        problem = f"has {values.not_finite} voxels that are NaN or infinite"
        report.error(file, problem, "Export it anew, or replace them.")
    if values.low == values.high:
        report.error(file, f"is {values.low:g} everywhere", "Export it anew, or take the case out.")
    elif window is not None and values.low < values.high:
        least, greatest = window
        remedy = "Set intensity_window for this modality, or bring it to the same units."
        if values.outside > _OUTSIDE:
            problem = f"has {values.outside:.1%} of its voxels outside of {least:g} to {greatest:g}"
            report.warn(file, problem, remedy)
        elif values.high - values.low < _SPAN * (greatest - least):
            problem = f"goes from {values.low:g} to {values.high:g}, hardly a part of {least:g} to {greatest:g}"
            report.warn(file, problem, remedy)
    return values.digest


def _check_grid(report: CaseReport, file: str, label: Geometry, image: Geometry) -> None:
    if label_orientation(label, image) is None:
        report.error(file, label.difference_from_image(image), "Export the label on the grid of its image.")
    elif label.doubt is not None:
        report.warn(file, *label.doubt)


def _joined(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _obliquity_degrees(affine: np.ndarray) -> float:
    """The largest angle between an axis of the volume and the axis of the body that it is closest to."""
    cosines = np.abs(affine[:3, :3] / voxel_sizes(affine)).max(axis=0)
    return math.degrees(math.acos(min(1.0, cosines.min())))
