"""Reading ``dataset.json``, the only description of a data set."""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from filelock import FileLock

from dinomix_monai.data.phantom import make_phantom
from dinomix_monai.volumes import (
    Annotation,
    LabelValues,
    PartialLabels,
    VolumeError,
    as_image,
    channel_files,
    class_number,
    label_values,
    open_volume,
    read_annotation,
)

__all__ = [
    "HELD_OUT",
    "SECTIONS",
    "Case",
    "Datalist",
    "class_weights",
    "dataset_root",
    "label_names",
    "named_channels",
    "open_datalist",
    "read_datalist",
    "read_label",
    "relative_name",
]

SECTIONS = {
    "training": ("image", "label"),
    "unlabeled": ("image",),
    "validation": ("image", "label"),
    "test": ("image", "label"),
}
"""Lists of cases in a datalist, and the files that each of their cases must have."""

HELD_OUT = ("validation", "test")
"""Those of cases that a model is scored on."""

Case = dict[str, Any]
"""Paths of ``image`` and ``label``; those of an image of several channels are a list, one file for each."""

MOST_CLASSES = 256
"""Label maps are stored in one byte for each voxel."""


@dataclass(frozen=True)
class Datalist:
    """
    Cases and classes of a data set; paths are absolute.

    Args:
        class_names: names by label value, background first.
        training: labeled cases, ``{"image": path, "label": path}``; of several channels ``image`` is a list of paths.
        unlabeled: cases of which only the image is used, ``{"image": path}``.
        validation: labeled cases that choose the best model.
        test: labeled cases that nothing is chosen by.
        is_phantom: whether this is the built-in procedural phantom.
        protocol: the published protocol that it was prepared by, with its source, or ``None``.
        from_test: how many of the last unlabeled cases were listed under ``test``, where no case has a label.
        channel_names: names of the channels of each image.
        has_channel_names: whether the list says so.
        partial_labels: what of the label maps somebody has looked for; ``None`` where all are complete.
    """

    class_names: tuple[str, ...]
    training: list[Case]
    unlabeled: list[Case]
    validation: list[Case]
    test: list[Case]
    is_phantom: bool = False
    protocol: dict[str, Any] | None = None
    from_test: int = 0
    channel_names: tuple[str, ...] = ("image",)
    has_channel_names: bool = False
    partial_labels: PartialLabels | None = None

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.class_names)

    @property
    def num_channels(self) -> int:
        """Number of channels of each image."""
        return len(self.channel_names)

    @property
    def looked_for(self) -> list[int]:
        """Classes that somebody has looked for in some labeled training case, or in some of its slices."""
        if not self.training:
            return []
        if self.partial_labels is None:
            return list(range(1, self.num_classes))
        found = (self.partial_labels.annotations.get(case["label"], Annotation()) for case in self.training)
        missing = frozenset(range(1, self.num_classes)).intersection(*(annotation.missing for annotation in found))
        return [value for value in range(1, self.num_classes) if value not in missing]

    def require_complete(self, method: str) -> None:
        """
        Refuses label maps that are not complete, for a method that would take what nobody has looked for as background.

        Args:
            method: its name.

        Raises:
            ValueError: When there are such label maps.
        """
        if self.partial_labels is not None and self.partial_labels.possible:
            raise ValueError(
                f"{method} needs complete label maps, got a dataset.json with `annotated`, `annotated_slices` or an "
                "`ignore` label. Use DINO-Mix or another baseline."
            )

    def describe(self) -> str:
        """How many cases each list has."""
        counts = {section: f"{len(getattr(self, section))} {section}" for section in SECTIONS}
        if self.from_test:
            counts["unlabeled"] += f" ({self.from_test} of them listed under test, without labels)"
        return ", ".join(counts.values())

    def section(self, name: str) -> list[Case]:
        """
        The cases of a list that has some.

        Raises:
            ValueError: When there is no such list, or no case in it.
        """
        if name not in SECTIONS or not getattr(self, name):
            raise ValueError(
                f"split must be one of {', '.join(SECTIONS)}, with cases in dataset.json, got {name!r}. "
                f"There are {self.describe()} cases."
            )
        return getattr(self, name)

    def cases(self) -> Iterator[tuple[str, Case]]:
        """All cases, each with the name of its section."""
        return ((section, case) for section in SECTIONS for case in getattr(self, section))

    @cached_property
    def training_voxels(self) -> list[int]:
        """Voxels of each class over the labeled training cases, background first."""
        counts = np.zeros(self.num_classes, dtype=np.int64)
        for case in self.training:
            file = case["label"]
            counts += self.label_values(file).voxels if self.partial_labels is None else self._known_voxels(file)
        return counts.tolist()

    def _known_voxels(self, file: str) -> np.ndarray:
        """Voxels of each class; one that is not drawn on counts as background, unless it may have any class."""
        counts = np.bincount(self.coded_label(file).ravel(), minlength=self.num_values)
        classes, sets = np.split(counts, [self.num_classes])
        is_free = self.possible[self.num_classes :].all(axis=1)  # type: ignore[index]  # there are some
        classes[0] += sets[~is_free].sum()
        return classes

    def coded_label(self, file: str) -> np.ndarray:
        """
        The voxels of a label map along the axes of its file, shape (H, W, D), with the codes of ``partial_labels``.

        Raises:
            ValueError: When it cannot be read, or contradicts what was looked for.
        """
        self.label_values(file)
        volume = open_volume(file)
        values = np.asanyarray(volume.dataobj).reshape(volume.shape[:3]).astype(np.intp)
        return values if self.partial_labels is None else self.partial_labels.coded(values, file)

    @property
    def num_values(self) -> int:
        """Values of a coded label map are below this."""
        return self.num_classes if self.partial_labels is None else self.partial_labels.num_codes

    @property
    def possible(self) -> np.ndarray | None:
        """See :meth:`PartialLabels.table`; ``None`` where all label maps are complete."""
        return None if self.partial_labels is None else self.partial_labels.table()

    def label_values(self, file: str) -> LabelValues:
        """
        What a label map comes down to.

        Raises:
            ValueError: When it cannot be read, or has values that are no classes.
        """
        num_values = self.num_classes if self.partial_labels is None else self.partial_labels.num_file_values
        values = read_label(file, num_values)
        if values.strays:
            raise ValueError(
                f"Label values must be whole numbers below {num_values} (`labels` of dataset.json), got "
                f"{values.low:g} to {values.high:g} in {file}."
            )
        return values


def read_label(file: str | Path, num_classes: int) -> LabelValues:
    """
    What a label map comes down to, whatever values it has.

    Raises:
        ValueError: When it cannot be read.
    """
    try:
        return label_values(open_volume(file), num_classes)
    except VolumeError as error:
        raise error.of(file) from error


def class_weights(voxels: Sequence[float], power: float) -> list[float]:
    """
    Weights ``(n_max / n_c) ** power`` of the classes in a cross-entropy, from their labeled voxels ``n_c``.

    A class without labeled voxels gets the weight of the rarest that has some.

    Raises:
        ValueError: When no class has any.
    """
    counts = np.asarray(voxels, dtype=float)
    if not counts.any():
        raise ValueError(
            f"voxels must have labeled voxels of some class, got {list(voxels)}. List labeled cases under `training`; "
            "scans without any label can be learned from in a federation alone."
        )
    counts[counts == 0] = counts[counts > 0].min()
    return ((counts.max() / counts) ** power).tolist()


def open_datalist(
    dataset_dir: str | Path,
    phantom_dir: str | Path | None = None,
    file: str = "dataset.json",
    allow_outside: bool = False,
    class_names: Sequence[str] | None = None,
) -> Datalist:
    """
    Reads ``dataset.json`` of a folder, and makes sure that every case is complete and its files are there.

    Headers of NIfTI files are read, too: one that claims more than its file can hold would fill the memory.

    Args:
        dataset_dir: see :func:`read_datalist`.
        phantom_dir: see :func:`read_datalist`.
        file: see :func:`read_datalist`.
        allow_outside: see :func:`read_datalist`.
        class_names: see :func:`read_datalist`.

    Raises:
        FileNotFoundError: When there is no such list, or a file that it names is missing.
        ValueError: When a case has no label and is not under ``unlabeled``, a file is not NIfTI, shorter than its
            header says, not one volume or in two places at once, or as :func:`read_datalist` does.
    """
    datalist = read_datalist(dataset_dir, phantom_dir, file, allow_outside, class_names)
    for section, case in datalist.cases():
        if missing := [key for key in SECTIONS[section] if key not in case]:
            raise _incomplete(section, case, missing[0])
        for path in _files(case):
            if not Path(path).is_file():
                raise FileNotFoundError(f"The datalist names {path} under `{section}`, but there is no such file.")
            _read_header(path, section)
    return datalist


def read_datalist(
    dataset_dir: str | Path,
    phantom_dir: str | Path | None = None,
    file: str = "dataset.json",
    allow_outside: bool = False,
    class_names: Sequence[str] | None = None,
) -> Datalist:
    """
    Reads ``dataset.json`` of a folder, in the form that ``monai.data.load_decathlon_datalist`` reads.

    ``labels`` may be names by value, as in the decathlon, values by name, as in nnU-Net v2, or a list of names. Cases
    under ``test`` of which none has a label are unlabeled cases: in the decathlon its organizers keep these labels.
    Paths may have the separators of Windows, and the file any encoding of JSON, with or without a byte order mark. What
    can be wrong with a single case is left to whoever uses it: files may be missing, and so may the entry of a label.

    Args:
        dataset_dir: folder of the data set; paths in the list are relative to it.
        phantom_dir: when ``dataset_dir`` is this folder and holds no data set yet, the phantom is made in it.
        file: name of the list.
        allow_outside: whether the list may name files that are not in ``dataset_dir``. A list that comes from others
            could name any file of this machine. A link in the folder is in it, wherever it leads.
        class_names: classes of a model that has more of them than this data set, background first. Label maps are
            renumbered by the names, and nobody has looked for the classes that the list does not name. ``None`` for a
            model of the list's own classes.

    Raises:
        FileNotFoundError: When there is no such list.
        ValueError: When the list is not JSON, lacks ``labels``, or lists no case under ``training`` or ``unlabeled``, a
            case has no image or names a file outside, the labels are not 0, 1, 2, ... with names that differ, or one
            of them is not in ``class_names``.
    """
    root = dataset_root(dataset_dir)
    path = root / file
    is_empty = not path.is_file() and not (root / "dataset.json").is_file()
    if is_empty and phantom_dir is not None and root == dataset_root(phantom_dir):
        root.parent.mkdir(parents=True, exist_ok=True)
        # Several trainings, or sites on one machine, may begin at once.
        with FileLock(f"{root}.lock"):
            if not (root / "dataset.json").is_file():
                print(f"Making the abdominal phantom in {dataset_dir} ...", flush=True)
                make_phantom(root)
    if not path.is_file():
        raise FileNotFoundError(
            f"dataset_dir must hold a datalist {file}, got {root}. It lists `labels`, `training` (image and label), "
            "`unlabeled` (image), `validation` and `test`, with paths relative to it. `python -m dinomix_monai init` "
            "writes it for a folder of scans."
        )
    content = _read_json(path)
    needed = {"labels": content.get("labels"), "training": content.get("training") or content.get("unlabeled")}
    if missing := [name for name, entries in needed.items() if not entries]:
        raise ValueError(f"{path} must have entries under {' and '.join(missing)}, got none.")
    sections = {}
    for name in SECTIONS:
        entries = content.get(name) or []
        if not isinstance(entries, list):
            raise ValueError(f"`{name}` of {path} must be a list of cases, got a {type(entries).__name__}.")
        sections[name] = [_case(root, entry, name) for entry in entries]
        outside = [file for case in sections[name] for file in _files(case) if not Path(file).is_relative_to(root)]
        if outside and not allow_outside:
            raise ValueError(
                f"`{name}` of {path} must name files in its folder, got {outside[0]}. If you trust the list, set "
                "allow_outside."
            )
    moved = [] if any("label" in case for case in sections["test"]) else sections["test"]
    if moved:
        sections["unlabeled"], sections["test"] = sections["unlabeled"] + moved, []
    names = label_names(content["labels"], path)
    return Datalist(
        names if class_names is None else tuple(class_names),
        **sections,
        is_phantom="phantom_seed" in content,
        protocol=content.get("protocol"),
        from_test=len(moved),
        channel_names=_channel_names(content, sections, path),
        has_channel_names=named_channels(content) is not None,
        partial_labels=_partial_labels(content, sections, names, class_names, path),
    )


def dataset_root(dataset_dir: str | Path) -> Path:
    """The folder of a data set, absolute and without ``..``, as the paths of its files are."""
    return Path(os.path.abspath(Path(dataset_dir).expanduser()))


def relative_name(file: str | Path, root: Path) -> str:
    """The path of a file from the folder of its data set, with slashes; the whole path of one that lies elsewhere."""
    path = Path(file)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(file)


def _files(case: Mapping[str, Any]) -> list[str]:
    return [file for files in case.values() for file in channel_files(files)]


def named_channels(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """Names of the channels of a list, as nnU-Net v2 has them, or nnU-Net v1 and the decathlon; ``None`` for none."""
    found = (content.get(name) for name in ("channel_names", "modality"))
    return next((names for names in found if isinstance(names, dict) and names), None)


def _channel_names(content: Mapping[str, Any], sections: Mapping[str, Sequence[Case]], path: Path) -> tuple[str, ...]:
    """Names of the channels, of which all images must have as many."""
    images = [channel_files(case["image"]) for cases in sections.values() for case in cases]
    number = len(images[0])
    if other := next((files for files in images if len(files) != number), None):
        raise ValueError(
            f"All images of {path} must have as many channels, got {number} of {images[0][0]} and {len(other)} of "
            f"{other[0]}."
        )
    named = named_channels(content)
    if named is None:
        return ("image",) if number == 1 else tuple(f"channel {channel}" for channel in range(number))
    if len(named) != number:
        raise ValueError(
            f"{path} must name as many channels as its images have files, got the names "
            f"{', '.join(map(str, named.values()))} and {number} for {images[0][0]}. Write each channel to a file of "
            "its own, and list all files of a case as its `image`, in the order of the names."
        )
    return tuple(str(name) for name in named.values())


def _partial_labels(
    content: Mapping[str, Any],
    sections: Mapping[str, Sequence[Case]],
    names: Sequence[str],
    class_names: Sequence[str] | None,
    path: Path,
) -> PartialLabels | None:
    """What of the label maps was looked for; ``None`` where all are complete and their values are the classes."""
    class_names = names if class_names is None else class_names
    # Background is the value 0 everywhere, whatever it is called.
    classes = [
        0,
        *(class_number(name, class_names, f"`labels` of {path} must be classes of the model") for name in names[1:]),
    ]
    annotations: dict[str, Annotation] = {}
    for name, cases in sections.items():
        for entry, case in zip(content.get(name) or [], cases):
            if "label" not in case:
                continue
            found = read_annotation(entry, names, case["label"]) or Annotation()
            found = found.renumbered(classes, len(class_names))
            if annotations.setdefault(case["label"], found) != found:
                raise ValueError(f"`annotated` of {case['label']} must be the same wherever {path} lists it.")
    annotations = {file: annotation for file, annotation in annotations.items() if annotation.unknown()}
    # It is the only one of the labels that is no class.
    has_ignore = len(content["labels"]) > len(names)
    is_model = classes == list(range(len(class_names)))
    if is_model and not annotations and not has_ignore:
        return None
    return PartialLabels(len(class_names), annotations, has_ignore, classes)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        # From bytes, so that a byte order mark tells the encoding.
        content = json.loads(path.read_bytes())
        # Half a character can be escaped, and then neither be a path nor be printed.
        json.dumps(content, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} must be JSON, got an error at line {error.lineno}: {error.msg}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be JSON in UTF-8, got an error at byte {error.start}.") from error
    except (RecursionError, ValueError) as error:  # of brackets in brackets, and of a number with thousands of digits
        raise ValueError(f"{path} must be JSON of a datalist, got what cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold an object with labels and training, got a {type(content).__name__}.")
    return content


def _case(root: Path, entry: Any, section: str) -> Case:
    # Decathlon lists of images alone may be plain strings.
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or not _are_names(entry.get("image")):
        raise _incomplete(section, entry, "image")

    def absolute(name: str) -> str:
        # Without `..`, so that it shows where a path leads.
        return os.path.normpath(root / _native(root, name, section))

    case: Case = {"image": as_image([absolute(name) for name in channel_files(entry["image"])])}
    if "label" in SECTIONS[section] and isinstance(entry.get("label"), str):
        case["label"] = absolute(entry["label"])
    return case


def _are_names(image: Any) -> bool:
    names = image if isinstance(image, list) else [image]
    return bool(names) and all(isinstance(name, str) for name in names)


def _native(root: Path, name: str, section: str) -> str:
    """A path with this system's separators, unless there is a file of that very name."""
    if os.sep == "\\" or os.path.exists(root / name):
        return name
    if PureWindowsPath(name).drive:
        raise ValueError(
            f"Each case under `{section}` must be named by a path from the list's folder, got {name}, which is one of "
            "Windows."
        )
    return name.replace("\\", "/")


def _read_header(path: str, section: str) -> None:
    try:
        open_volume(path)
    except VolumeError as error:
        raise ValueError(
            f"The datalist names {path} under `{section}`, which {error.problem}. {error.remedy}"
        ) from error


def _incomplete(section: str, entry: Any, missing: str) -> ValueError:
    keys = " and ".join(SECTIONS[section])
    return ValueError(f"Each case under `{section}` must have {keys}, got {entry} without {missing}.")


def _is_ignore(name: Any) -> bool:
    return isinstance(name, str) and name.lower() == "ignore"


def label_names(labels: Any, path: Path) -> tuple[str, ...]:
    """
    Names of the classes in the order of their values.

    Args:
        labels: names by value, values by name, or a list of names, as ``labels`` of a list has them.
        path: the list, for errors.

    Raises:
        ValueError: When the labels are not 0, 1, 2, ... with names that differ.
    """
    if not isinstance(labels, dict):
        labels = {str(value): name for value, name in enumerate(labels if isinstance(labels, list) else ())}
    # {"0": "background", ...} as the decathlon writes it, or {"background": 0, ...} as nnU-Net v2 does.
    is_by_value = all(key.isdecimal() for key in labels)
    pairs = [(int(key), entry) if is_by_value else (entry, key) for key, entry in labels.items()]
    values = [value for value, _ in pairs]
    if ignored := [pair for pair in pairs if _is_ignore(pair[1])]:
        # Not a class, and behind all of them.
        if ignored[0][0] != len(values) - 1:
            raise ValueError(
                f"`labels` of {path} must have `ignore` as greatest value, {len(values) - 1}, got {ignored[0][0]}."
            )
        pairs.remove(ignored[0])
        values.remove(ignored[0][0])
    # What is no number is a region of several in nnU-Net v2, which is no class.
    if len(values) < 2 or any(value not in values for value in range(len(values))):
        raise ValueError(
            f"`labels` of {path} must name the values 0 (background), 1, 2, ..., got {reprlib.repr(values)}."
        )
    # All values are numbers now, and none is there twice.
    names = [name for _, name in sorted(pairs, key=lambda pair: pair[0])]
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"`labels` of {path} must be names, got {reprlib.repr(names)}.")
    if doubled := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"`labels` of {path} must name each class differently, got {doubled[0]!r} twice.")
    if len(names) > MOST_CLASSES:
        raise ValueError(f"`labels` of {path} must name at most {MOST_CLASSES} classes, got {len(names)}.")
    return tuple(names)
