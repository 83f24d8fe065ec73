"""A ``dataset.json`` for a folder of scans that has none."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from tqdm import tqdm

from dinomix_monai.core.files import set_aside, write_json
from dinomix_monai.core.text import some, text_table
from dinomix_monai.data.datalist import (
    HELD_OUT,
    MOST_CLASSES,
    SECTIONS,
    dataset_root,
    label_names,
    read_label,
    relative_name,
)
from dinomix_monai.data.layouts import CHANNELS, SPLIT_KEY, FoundScan, FoundScans, find_scans, patient_name
from dinomix_monai.volumes import (
    VolumeError,
    as_image,
    image_name,
    label_on_grid,
    named_annotation,
    nifti_stem,
    open_volume,
    write_volume,
)

__all__ = ["NewDatalist", "make_datalist"]

# Labeled patients from which on some are kept for the test: below, each is worth more where it is learned from.
_ENOUGH_FOR_TEST = 10
_ENOUGH_FOR_VALIDATION = 3
# Of each ten labeled patients two choose the model, and two are scored.
_HELD_OUT_SHARE = 0.2
# Orders of the patients that are tried, for one in which each list has all classes.
_ORDERS = 200
_MERGED = "label.nii.gz"


class NewDatalist(NamedTuple):
    """
    A data list that was written, and what a reader should know of it.

    Args:
        path: the file.
        description: layout, patients, lists, and voxels of each class, as text.
    """

    path: Path
    description: str


def make_datalist(
    dataset_dir: str | Path,
    class_names: Sequence[str] | None = None,
    validation: int | None = None,
    test: int | None = None,
    seed: int = 0,
    patient: str | None = None,
    images: str | None = None,
    labels: str | None = None,
    channel: int | None = None,
    file: str = "dataset.json",
    overwrite: bool = False,
) -> NewDatalist:
    """
    Finds the scans of a folder, deals the labeled ones out by patient, and writes the data list.

    Scans without a label map are unlabeled, whatever list they were in. Labeled scans that the layout keeps for the
    test stay there. Of the patients of the others a fifth chooses the model and, from ten labeled patients on, another
    fifth is scored; of the orders that ``seed`` gives, the first one is taken in which the lists have most classes.

    What a list that was there says of a label map, ``annotated`` and ``annotated_slices``, stays; of the label maps of
    a datastore of MONAI Label the datastore says it.

    Where a class has a file of its own for each case, as in TotalSegmentator's data set, one label map is made of them
    and written as ``label.nii.gz`` beside the scan. Where a file has several channels that a ``dataset.json`` names, as
    in two tasks of the decathlon, each goes into a file of its own in the folder ``image_channels``. Nothing else is
    written but the list.

    Args:
        dataset_dir: folder of the scans, see :func:`find_scans`.
        class_names: names of the label values 1, 2, ...; those of a ``dataset.json`` that is there if not given, or
            else ``class 1``, ``class 2``, ... Of masks by class, the classes to take, in the order of their values.
        validation: patients that choose the model.
        test: patients that are scored, of those that the layout does not keep for it.
        seed: of the split.
        patient: regular expression with one group, which finds the patient in the name of a scan; by default a name up
            to a word such as ``frame``, ``session``, ``visit`` or ``time``.
        images: see :func:`find_scans`.
        labels: see :func:`find_scans`.
        channel: see :func:`find_scans`.
        file: name of the list.
        overwrite: whether a list, or a merged label map, that is there may be replaced; the list is kept as
            ``*.previous.json``.

    Raises:
        FileExistsError: When the list is there, or a merged label map.
        FileNotFoundError: When there is no scan.
        ValueError: When a label map cannot be read or has values that are no classes, masks of a class are missing, too
            many patients are held out, ``patient`` does not fit a name, or as :func:`find_scans` does.
    """
    root = dataset_root(dataset_dir)
    path = root / file
    _check_free(path, overwrite)
    found = find_scans(root, images, labels, channel)
    if any(scan.masks for scan in found.scans):
        class_names = list(class_names or _mask_names(found.scans))
        scans = _merged(found.scans, class_names, overwrite)
        names: Any = ["background", *class_names]
    else:
        scans = list(found.scans)
        names = ["background", *class_names] if class_names else found.labels
    _write_channels(scans)
    labeled = [scan for scan in scans if scan.label is not None]
    voxels = _class_voxels([scan.label for scan in labeled if scan.label is not None])
    most = max((len(row) for row in voxels), default=0)
    if names is None:
        names = ["background", *(f"class {value}" for value in range(1, max(most, 2)))]
    by_file = {scan.image: row for scan, row in zip(labeled, voxels)}
    classes = label_names(names, path)
    patients = {scan.image: patient_name(image_name((scan.image, *scan.channels)), root, patient) for scan in scans}
    lists = _split(scans, patients, by_file, validation, test, seed)
    content: dict[str, Any] = {}
    if path.is_file():
        content = json.loads(path.read_bytes())
        set_aside(path)
    content |= {"labels": names if isinstance(names, Mapping) else dict(enumerate(names))}
    for name in ("channel_names", "modality"):
        content.pop(name, None)
    if found.channel_names:
        content["channel_names"] = {str(number): name for number, name in enumerate(found.channel_names)}
    known = _annotations(content)
    content |= {section: [_entry(scan, root, known) for scan in lists[section]] for section in SECTIONS}
    write_json(path, content | {SPLIT_KEY: {"seed": seed, "unit": "patient"}})
    return NewDatalist(path, _describe(root, found, lists, patients, by_file, classes, seed))


def _annotations(content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What the list that was there says of each label map beside its file."""
    cases = [case for section in SECTIONS for case in content.get(section) or [] if isinstance(case, dict)]
    return {str(case.get("label")): named_annotation(case) for case in cases}


def _entry(scan: FoundScan, root: Path, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    entry: dict[str, Any] = {"image": as_image([relative_name(one, root) for one in (scan.image, *scan.channels)])}
    if scan.label is None:
        return entry
    label = relative_name(scan.label, root)
    return {**entry, "label": label, **(known.get(label, {}) if scan.annotation is None else scan.annotation)}


def _check_free(path: Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} must not be there yet, because nothing is replaced unasked. Pass --overwrite True, which keeps it "
            "as *.previous.json, or --datalist_file with another name."
        )


def _mask_names(scans: Sequence[FoundScan]) -> list[str]:
    return sorted(set().union(*(scan.masks for scan in scans)))


def _merged(scans: Sequence[FoundScan], class_names: Sequence[str], overwrite: bool) -> list[FoundScan]:
    """The scans with a label map each, made of their masks."""
    if len(class_names) >= MOST_CLASSES:
        raise ValueError(f"labels must name less than {MOST_CLASSES} classes, got {len(class_names)}.")
    for scan in scans:
        if scan.masks and (missing := [name for name in class_names if name not in scan.masks]):
            raise ValueError(
                f"Each labeled case must have a mask of every class, empty if it has none, got {scan.image.parent} "
                f"without {missing[0]}. Name the classes that all cases have by --labels."
            )
        if scan.masks and (merged := scan.image.parent / _MERGED).exists() and not overwrite:
            raise FileExistsError(
                f"{merged} must not be there yet, because nothing is replaced unasked. Pass --overwrite True to make "
                "it anew from the masks."
            )
    done = []
    for scan in tqdm(scans, "Merging masks", unit="case", disable=None):
        if not scan.masks:
            done.append(scan)
            continue
        header = _open(scan.masks[class_names[0]]).header
        values = np.zeros(header.get_data_shape()[:3], dtype=np.uint8)
        for value, name in enumerate(class_names, start=1):
            mask = np.asanyarray(_open(scan.masks[name]).dataobj) > 0
            mask = mask.reshape(mask.shape[:3])
            if mask.shape != values.shape:
                raise ValueError(
                    f"Masks of a case must have one shape, got {mask.shape} in {scan.masks[name]} and {values.shape}."
                )
            values[mask] = value
        volume = label_on_grid(values, header)
        done.append(replace(scan, label=write_volume(volume, scan.image.parent / _MERGED)))
    return done


def _write_channels(scans: Sequence[FoundScan]) -> None:
    """Writes the channels of scans that have them in one file, but for those that are there already."""
    packed = [(scan.packed, file) for scan in scans if scan.packed for file in (scan.image, *scan.channels)]
    missing = [
        (source, file) for source, file in packed if not file.is_file() or file.stat().st_mtime < source.stat().st_mtime
    ]
    for source, file in tqdm(missing, "Writing channels", unit="channel", disable=None if missing else True):
        number = int(nifti_stem(file).rpartition("_")[2])
        write_volume(nib.Nifti1Image.from_filename(source).slicer[..., number], file)


def _class_voxels(labels: Sequence[Path]) -> list[np.ndarray]:
    """Voxels of each class in each label map, up to its greatest value."""

    def count(file: Path) -> np.ndarray:
        values = read_label(file, MOST_CLASSES)
        if values.strays:
            raise ValueError(
                f"Label maps must have whole numbers from 0 to {MOST_CLASSES - 1}, got {values.low:g} to "
                f"{values.high:g} in {file}."
            )
        return np.trim_zeros(np.array(values.voxels), "b")

    with ThreadPoolExecutor() as pool:
        return list(tqdm(pool.map(count, labels), "Reading labels", len(labels), unit="case", disable=None))


def _open(file: Path) -> Any:
    try:
        return open_volume(file)
    except VolumeError as error:
        raise error.of(file) from error


def _split(
    scans: Sequence[FoundScan],
    patients: Mapping[Path, str],
    voxels: Mapping[Path, np.ndarray],
    validation: int | None,
    test: int | None,
    seed: int,
) -> dict[str, list[FoundScan]]:
    kept = [scan for scan in scans if scan.is_test]
    known = {patients[scan.image] for scan in kept}
    if shared := sorted(known & {patients[scan.image] for scan in scans if not scan.is_test}):
        raise ValueError(
            f"Scans of a patient must not be both under test and elsewhere, got {shared[0]}. If these are several "
            "patients, tell them apart by --patient."
        )
    labeled = [scan for scan in scans if scan.label is not None and not scan.is_test]
    names = sorted({patients[scan.image] for scan in labeled})
    counts = {
        "validation": _held_out("validation", validation, len(names), _ENOUGH_FOR_VALIDATION),
        "test": _held_out("test", 0 if test is None and kept else test, len(names), _ENOUGH_FOR_TEST),
    }
    if names and sum(counts.values()) >= len(names):
        raise ValueError(
            f"validation and test must leave labeled patients to learn from, got {counts['validation']} and "
            f"{counts['test']} of {len(names)}."
        )
    draw = random.Random(seed)
    orders = [draw.sample(names, len(names)) for _ in range(_ORDERS)]
    classes = {name: frozenset[int]().union(*(
        np.flatnonzero(voxels[scan.image]).tolist() for scan in labeled if patients[scan.image] == name
    )) for name in names}  # fmt: skip

    def parts(order: Sequence[str]) -> dict[str, list[str]]:
        cut = counts["validation"], counts["validation"] + counts["test"]
        return {
            "validation": list(order[: cut[0]]),
            "test": list(order[cut[0] : cut[1]]),
            "training": list(order[cut[1] :]),
        }

    def covered(order: Sequence[str]) -> tuple[int, ...]:
        dealt = parts(order)
        return tuple(
            len(frozenset[int]().union(*(classes[name] for name in dealt[one])))
            for one in ("training", "validation", "test")
        )

    chosen = parts(max(orders, key=covered)) if names else {}
    lists = {
        section: [scan for scan in labeled if patients[scan.image] in members] for section, members in chosen.items()
    }
    lists["test"] = [*lists.get("test", []), *kept]
    held_out = {patients[scan.image] for section in HELD_OUT for scan in lists.get(section, [])}
    # Another scan of a patient who is scored would give the score away.
    lists["unlabeled"] = [scan for scan in scans if scan.label is None and patients[scan.image] not in held_out]
    return {section: lists.get(section, []) for section in SECTIONS}


def _held_out(name: str, given: int | None, patients: int, enough: int) -> int:
    if given is None:
        return max(1, round(_HELD_OUT_SHARE * patients)) if patients >= enough else 0
    if given < 0:
        raise ValueError(f"{name} must be a number of patients, got {given}.")
    return given


def _describe(
    root: Path,
    found: FoundScans,
    lists: Mapping[str, Sequence[FoundScan]],
    patients: Mapping[Path, str],
    voxels: Mapping[Path, np.ndarray],
    class_names: Sequence[str],
    seed: int,
) -> str:
    lines = [f"{root} is {found.layout}: {len(found.scans)} scans of {len(set(patients.values()))} patients."]
    if number := len(found.scans[0].channels):
        names = f": {', '.join(found.channel_names)}" if found.channel_names else ""
        written = f", written to {CHANNELS} from one file" if found.scans[0].packed else ""
        lines.append(f"Each has {number + 1} channels{names}{written}.")
    for section, scans in lists.items():
        members = sorted({patients[scan.image] for scan in scans})
        lines.append(f"  {section}: {len(scans)} scans of {len(members)} patients" + _few(members))
    listed = {scan.image for scans in lists.values() for scan in scans}
    dropped = [scan.image for scan in found.scans if scan.image not in listed]
    if dropped:
        lines.append(
            f"  in no list, because a scan of the same patient is held out: {len(dropped)}{_few(_names(dropped, root))}"
        )
    if found.left_out:
        lines.append(
            f"  left out, because no scan or label map: {len(found.left_out)}{_few(_names(found.left_out, root))}"
        )
    lines.append(f"Labeled patients were dealt out with seed {seed}.")
    columns = {section: lists[section] for section in ("training", "validation", "test") if lists[section]}
    if columns:
        rows = [["class", *(f"cases of {section}" for section in columns), "voxels of a case"]]
        for value, name in enumerate(class_names):
            if value:
                rows.append([name, *(
                    str(sum(_count(voxels[scan.image], value) > 0 for scan in scans)) for scans in columns.values()
                ), _typical([_count(row, value) for row in voxels.values()])])  # fmt: skip
        lines += text_table(rows)
    return "\n".join(lines)


def _count(row: np.ndarray, value: int) -> int:
    return int(row[value]) if value < len(row) else 0


def _typical(counts: Sequence[int]) -> str:
    present = [count for count in counts if count]
    return f"{np.median(present):.0f}" if present else "-"


def _names(files: Sequence[Path], root: Path) -> list[str]:
    return [relative_name(file, root) for file in files]


def _few(names: Sequence[str]) -> str:
    return f" ({some(names, 6)})" if names else ""
