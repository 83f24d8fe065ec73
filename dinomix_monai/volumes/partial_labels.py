"""What of the label maps somebody has looked for."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dinomix_monai.core.text import did_you_mean

__all__ = ["ANNOTATION", "Annotation", "PartialLabels", "class_number", "named_annotation", "read_annotation"]

ANNOTATION = ("annotated", "annotated_slices")
"""Entries of a case that say what somebody has looked for; all, where there are none."""

_MOST_CODES = 256
"""Label maps are stored in one byte for each voxel."""


@dataclass(frozen=True)
class Annotation:
    """
    What somebody has looked for in a case.

    Args:
        missing: values of the classes that nobody has looked for.
        slices: for a class that was looked for in some slices alone, these slices: numbers, from 0, along the third
            axis of the label map's file. A class in neither was looked for everywhere.
    """

    missing: frozenset[int] = frozenset()
    slices: Mapping[int, frozenset[int]] = field(default_factory=dict)

    def unknown_in(self, number: int) -> frozenset[int]:
        """Values of the classes that nobody has looked for in a slice."""
        return self.missing | {value for value, drawn in self.slices.items() if number not in drawn}

    @property
    def numbers(self) -> frozenset[int]:
        """All slices that are named."""
        return frozenset().union(*self.slices.values())

    def entries(self, class_names: Sequence[str]) -> dict[str, Any]:
        """As a case of a data list says it, see :func:`read_annotation`."""
        names = [name for value, name in enumerate(class_names) if value > 0 and value not in self.missing]
        slices = {class_names[value]: sorted(numbers) for value, numbers in self.slices.items()}
        return {"annotated": names, **({"annotated_slices": slices} if slices else {})}

    def unknown(self) -> set[frozenset[int]]:
        """What is unknown in any slice, of however many there are."""
        # None of them is below 0, so that is a slice which nobody has named.
        return {self.unknown_in(number) for number in (-1, *self.numbers)} - {frozenset()}

    def density(self, value: int) -> float:
        """Share of the slices in which a class was looked for, from the first of them to the last; 1 for all."""
        drawn = self.slices.get(value)
        return 1.0 if drawn is None else len(drawn) / (max(drawn) - min(drawn) + 1)

    def renumbered(self, classes: Sequence[int], num_classes: int) -> Annotation:
        """
        The same in a model whose classes are others; nobody has looked for those that are not among them.

        Args:
            classes: for each class its number in the model, background first.
            num_classes: classes of the model.
        """
        missing = set(range(num_classes)).difference(classes) | {classes[value] for value in self.missing}
        return Annotation(frozenset(missing), {classes[value]: drawn for value, drawn in self.slices.items()})


def class_number(name: Any, class_names: Sequence[str], contract: str) -> int:
    """
    Value of a class by its name.

    Args:
        name: of a class, not of background.
        class_names: names by label value, background first.
        contract: what must be a name, as the beginning of a sentence that goes on with the classes.

    Raises:
        ValueError: When it is the name of none.
    """
    known = list(class_names[1:])
    if name in known:
        return 1 + known.index(name)
    raise ValueError(f"{contract}, {', '.join(known)}, got {name!r}.{did_you_mean(str(name), known)}")


def named_annotation(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry of a list, or the info of a label, says of what somebody has looked for, and nothing else of it."""
    return {name: entry[name] for name in ANNOTATION if entry.get(name) is not None}


def read_annotation(entry: Mapping[str, Any], class_names: Sequence[str], where: str) -> Annotation | None:
    """
    What a case of a data list says of its label map; ``None`` where it is complete.

    Args:
        entry: the case; ``annotated`` are names of the classes that were looked for, all if it is not there, and
            ``annotated_slices`` the slices in which they were, or, by the name of a class, in which that one was.
        class_names: names by label value, background first.
        where: the case, for errors.

    Raises:
        ValueError: When a name is that of no class, or a slice no whole number from 0 on.
    """
    foreground, names = range(1, len(class_names)), f"annotated of {where} must name classes of `labels`"
    named = entry.get("annotated")
    looked_for = (
        set(foreground) if named is None else {class_number(name, class_names, names) for name in _list(named, where)}
    )
    slices = entry.get("annotated_slices")
    by_class = slices if isinstance(slices, Mapping) else {} if slices is None else dict.fromkeys(looked_for, slices)
    drawn: dict[int, frozenset[int]] = {}
    for name, numbers in by_class.items():
        value = name if isinstance(name, int) else class_number(name, class_names, names)
        if value not in looked_for:
            raise ValueError(f"annotated of {where} must have {name}, which annotated_slices has, got {named}.")
        drawn[value] = _slice_numbers(numbers, where)
    found = Annotation(frozenset(foreground) - looked_for, drawn)
    return found if found.unknown() else None


def _list(named: Any, where: str) -> list[Any]:
    if not isinstance(named, list) or not named:
        raise ValueError(
            f"annotated of {where} must be a list with names of classes, got {named!r}. A case in which nobody has "
            "looked for any belongs under `unlabeled`."
        )
    return named


def _slice_numbers(numbers: Any, where: str) -> frozenset[int]:
    are_numbers = isinstance(numbers, list) and all(type(number) is int and number >= 0 for number in numbers)
    if not are_numbers or not numbers:
        raise ValueError(
            f"annotated_slices of {where} must be numbers of slices, from 0 on, along the third axis of the label "
            f"map, got {numbers!r}."
        )
    return frozenset(numbers)


class PartialLabels:
    """
    One number for each voxel, whatever is known of it.

    A voxel that somebody has drawn a class on has that class. Of one that nobody has drawn on only so much is known: it
    is background, or one of the classes that nobody has looked for there. Each such set of *possible* classes has a
    code from ``num_classes`` on, so a label map stays one volume of whole numbers through all transforms, and only what
    learns and scores has to know the sets.

    References: Shi et al., "Marginal loss and exclusion loss for partially supervised multi-organ segmentation",
    Medical Image Analysis 2021, https://arxiv.org/abs/2007.03868; Zhang et al., "DoDNet", CVPR 2021,
    https://arxiv.org/abs/2011.10217.

    Args:
        num_classes: number of classes, background included.
        annotations: what was looked for in each label map that is not complete, by its file.
        has_ignore: whether label maps may have one value more than classes, for voxels that nobody has looked at.
        file_classes: for each value of a label map its class; ``None`` where the values are the classes.

    Attributes:
        possible: the sets of possible classes, in the order of their codes.
        num_file_values: values of label maps in files are below this.

    Raises:
        ValueError: When there are more than 256 classes and sets.
    """

    def __init__(
        self,
        num_classes: int,
        annotations: Mapping[str, Annotation] | None = None,
        has_ignore: bool = False,
        file_classes: Sequence[int] | None = None,
    ) -> None:
        self.num_classes, self.has_ignore = num_classes, has_ignore
        self._file_classes = list(range(num_classes) if file_classes is None else file_classes)
        self.num_file_values = len(self._file_classes) + has_ignore
        self.annotations = dict(annotations or {})
        unknown = set().union(*(annotation.unknown() for annotation in self.annotations.values()))
        if has_ignore:
            unknown.add(self._all)
        self.possible = [frozenset((0, *classes)) for classes in sorted(unknown, key=sorted)]
        self._codes = {classes: num_classes + place for place, classes in enumerate(self.possible)}
        if num_classes + len(self.possible) > _MOST_CODES:
            raise ValueError(
                f"Classes and different sets of annotated classes must be at most {_MOST_CODES}, got {num_classes} and "
                f"{len(self.possible)}."
            )

    @property
    def _all(self) -> frozenset[int]:
        return frozenset(range(1, self.num_classes))

    @property
    def num_codes(self) -> int:
        """Values of coded label maps are below this; ``num_classes`` where all label maps are complete."""
        return self.num_classes + len(self.possible)

    def table(self) -> np.ndarray:
        """For each value of a coded label map, which classes are possible, shape (num_codes, num_classes)."""
        known = np.eye(self.num_classes, dtype=bool)
        sets = [[value in classes for value in range(self.num_classes)] for classes in self.possible]
        return np.concatenate([known, np.array(sets, dtype=bool).reshape(-1, self.num_classes)])

    def coded(self, values: np.ndarray, file: str | os.PathLike) -> np.ndarray:
        """
        The coded label map of a case.

        Args:
            values: label map along the axes of its file, shape (H, W, D).
            file: the file.

        Raises:
            ValueError: When a class is drawn where nobody has looked for it, or a slice is named that there is not.
        """
        annotation = self.annotations.get(str(file))
        codes = [*self._file_classes, *([self._code(self._all)] if self.has_ignore else [])]
        if annotation is None and codes == list(range(self.num_classes)):
            return values
        result = np.array(codes, dtype=values.dtype)[values.astype(np.intp)]
        if annotation is None:
            return result
        depth = values.shape[2]
        if beyond := sorted(number for number in annotation.numbers if number >= depth):
            raise ValueError(f"annotated_slices of {file} must be below {depth}, its slices, got {beyond[0]}.")
        for number in range(depth):
            if not (unknown := annotation.unknown_in(number)):
                continue
            of_slice = result[..., number]
            if contradictory := sorted(unknown.intersection(np.unique(of_slice).tolist())):
                raise ValueError(
                    f"A label map must have no class that is not annotated there, got {file} with the value "
                    f"{self._file_classes.index(contradictory[0])} in slice {number}. Correct `annotated` or "
                    "`annotated_slices`."
                )
            of_slice[of_slice == 0] = self._code(unknown)
        return result

    def _code(self, unknown: frozenset[int]) -> int:
        return self._codes[unknown | {0}]
