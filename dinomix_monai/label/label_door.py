"""What a label must be to be saved, and what is kept of what a client says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dinomix_monai.data import CaseCheck
from dinomix_monai.label.refusal import Refusal
from dinomix_monai.volumes import (
    ANNOTATION,
    PartialLabels,
    VolumeError,
    class_number,
    is_nifti_name,
    label_on_grid,
    label_values,
    open_volume,
    read_annotation,
    write_volume,
)

__all__ = ["LabelDoor"]

_SEGMENTS = "label_info"
"""What the info of a label says of its values, in MONAI Label's words."""


class LabelDoor:
    """
    Refuses labels that no training can learn from, and brings those of 3D Slicer to the values of the app.

    3D Slicer numbers the segments that it saves from 1 on, whatever their names are, and sends the names in this order
    as ``label_info``. So the values of a label whose annotator has removed a segment are not those of the app's
    classes: here each goes to the class of its name, and a class that has no segment is one that nobody has looked for.

    Args:
        class_names: names by label value, background first.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.class_names = list(class_names)

    def numbered(self, file: Path, info: Mapping[str, Any], name: str, folder: Path) -> tuple[Path, dict[str, Any]]:
        """
        The label with the values of the app, and its info with what its segments say was looked for.

        Args:
            file: the label as it came.
            info: what the client says of it.
            name: what errors call the label.
            folder: where a label of other values is written.

        Raises:
            Refusal: When the file is no NIfTI volume, or its values are not those of the segments, or these are not
                those of the app.
        """
        if not is_nifti_name(file):
            raise Refusal(f"{_start(name)} must be a NIfTI file (.nii or .nii.gz), got one that ends in {file.suffix}.")
        segments = self._segments(info.get(_SEGMENTS), name)
        if segments is None:
            return file, dict(info)
        # What is said outright comes first.
        info = {"annotated": segments, **info}
        if segments == self.class_names[1 : len(segments) + 1]:
            return file, info
        try:
            volume = open_volume(file)
            found = label_values(volume, len(segments) + 1)
        except VolumeError as error:
            raise Refusal(f"{_start(name)} {error}") from error
        if found.strays:
            raise Refusal(
                f"{_SEGMENTS} must name the segments in the order of their values, 1 to {len(segments)}, got values up "
                f"to {found.high:g} in {name}. Leave it out for a label with the values of the app, and say by "
                "annotated which classes somebody has looked for."
            )
        table = np.array([0, *(self.class_names.index(segment) for segment in segments)], dtype=np.uint8)
        # Whole numbers below 256, whatever type they are stored in.
        values = table[np.asanyarray(volume.dataobj).reshape(volume.shape[:3]).astype(np.uint8)]
        return write_volume(label_on_grid(values, volume.header), folder / file.name), info

    def checked(self, file: Path, info: Mapping[str, Any], name: str, image: str) -> dict[str, Any]:
        """
        What is kept of the info of a label: what was looked for, unless that is all, and which classes it has.

        Args:
            file: the label, with the values of the app.
            info: what is said of it.
            name: what errors call the label.
            image: path of its scan.

        Raises:
            Refusal: When the label is none of this scan, has values of no class, or contradicts what was looked for.
        """
        try:
            annotation = read_annotation(info, self.class_names, name)
            partial = None if annotation is None else PartialLabels(len(self.class_names), {str(file): annotation})
        except ValueError as error:
            raise Refusal(str(error)) from error
        report = CaseCheck(len(self.class_names), partial_labels=partial).label(image, str(file))
        drawn = sorted((report.classes or frozenset()) - {0})
        if unsaid := [self.class_names[value] for value in drawn if value not in report.looked_for]:
            raise Refusal(
                f"annotated of {name} must have all classes that are drawn in it, got none of {_and(unsaid)}."
            )
        if errors := [finding for finding in report.findings if finding.severity == "error"]:
            first = errors[0]
            what = _start(name) if first.file == str(file) else Path(first.file).name
            raise Refusal(f"{what} {first.problem}. {first.remedy}".replace(str(file), name))
        kept = {key: value for key, value in info.items() if annotation is not None or key not in ANNOTATION}
        return {**kept, _SEGMENTS: [{"name": self.class_names[value], "idx": value} for value in drawn]}

    def _segments(self, entries: Any, name: str) -> list[str] | None:
        """Names of the segments in the order of their values; ``None`` where a client does not send them."""
        if not isinstance(entries, list) or not all(isinstance(entry, dict) and "name" in entry for entry in entries):
            return None
        segments = [entry["name"] for entry in entries]
        try:
            for segment in segments:
                class_number(segment, self.class_names, f"{_SEGMENTS} of {name} must name classes of the app")
        except ValueError as error:
            raise Refusal(f"{error} Rename that segment, or remove it.") from error
        numbers = [entry.get("idx", place) for place, entry in enumerate(entries, 1)]
        if numbers != list(range(1, len(segments) + 1)):
            raise Refusal(
                f"{_SEGMENTS} of {name} must number its segments 1, 2 and so on, as 3D Slicer does, got "
                f"{', '.join(map(str, numbers))}. Leave it out for a label with the values of the app, and say by "
                "annotated which classes somebody has looked for."
            )
        return segments


def _start(name: str) -> str:
    return name[0].upper() + name[1:]


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)
