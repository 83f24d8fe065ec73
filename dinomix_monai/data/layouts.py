"""Scans and label maps in the folder layouts that people have."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dinomix_monai.core.text import some
from dinomix_monai.data.datalist import dataset_root, named_channels
from dinomix_monai.data.scan_folder import channel_of, images_of_channels
from dinomix_monai.volumes import is_nifti_name, named_annotation, nifti_stem, packed_channels, split_names

__all__ = ["CHANNELS", "SPLIT_KEY", "FoundScan", "FoundScans", "case_name", "find_scans", "patient_name"]

IMAGE_FOLDERS = (
    *("imagestr", "images", "image", "imgs", "img", "scans", "scan", "volumes", "volume"),
    *("ct", "cts", "mr", "mri", "mris"),
)
"""Names of folders with images, in small letters; the first one that is there is taken."""

LABEL_FOLDERS = (
    *("labelstr", "labels", "label", "segmentations", "segmentation", "segs", "seg"),
    *("masks", "mask", "annotations", "annotation", "groundtruth", "gt"),
)
"""Names of folders with label maps, in small letters; the first one that is there is taken."""

SPLIT_KEY = "split"
"""Entry of a list that was made of a folder: how its labeled patients were dealt out."""

CHANNELS = "image_channels"
"""Folder of the channels of scans that have them in one file; no scan in it is a scan of its own."""

# What the name of a file says beside its case. A digit may follow at once: img0001 and label0001.
_KIND = "image|images|imaging|img|ct|mri|mr|scan|volume|labels|label|segmentation|seg|mask|groundtruth|gt|annotation"
_KINDS = re.compile(rf"(?:(?<=^)|(?<=[-_. ]))(?:{_KIND})(?=$|[-_. ]|\d)", re.IGNORECASE)
_LABEL_KIND = re.compile(
    r"(?:^|[-_. ])(?:labels?|seg(?:mentations?)?|masks?|gt|groundtruth|annotations?)(?=$|[-_. ]|\d)", re.IGNORECASE
)
# What may follow a patient in the name of a file.
_VISIT = r"(?:[-_.](?:frame|session|ses|time|visit|phase|scan|run|series|tp)[-_]?\w*)+$"
_CHANNEL = re.compile(r"_\d{4}$")
# What a person would take for a scan, and is none here.
_OTHER_FORMATS = (".mha", ".mhd", ".nrrd", ".nhdr", ".dcm", ".mgz", ".mgh", ".hdr", ".img", ".img.gz", ".npy", ".npz")
_LABELS_FILE = "labels.json"
_TOTALSEGMENTATOR_SCANS = ("ct", "mri", "mr")


@dataclass(frozen=True)
class FoundScan:
    """
    A scan of a folder.

    Args:
        image: its file, or that of its first channel.
        label: its label map, or ``None``.
        masks: files of binary masks by class, of which its label map has to be made; empty if there are none.
        is_test: whether the layout keeps it for the test.
        channels: files of its other channels.
        annotation: what the layout says of what somebody has looked for in its label map, as entries of a case;
            ``None`` where it says nothing of any.
        packed: the one file that has all channels, of which ``image`` and ``channels`` have to be made; ``None`` where
            these are there.
    """

    image: Path
    label: Path | None = None
    masks: dict[str, Path] = field(default_factory=dict)
    is_test: bool = False
    channels: tuple[Path, ...] = ()
    annotation: Mapping[str, Any] | None = None
    packed: Path | None = None


@dataclass(frozen=True)
class FoundScans:
    """
    All scans of a folder.

    Args:
        layout: what the folder was taken for, as a noun.
        scans: the scans in the order of their names.
        labels: ``labels`` of a ``dataset.json`` that is there, as it has them, or what ``labels.json`` has, which
            ``autolabel`` writes; ``None`` without either.
        left_out: files that look like volumes and are none of the scans.
        channel_names: names of the channels, or ``None`` where there is one, or nothing tells.
    """

    layout: str
    scans: tuple[FoundScan, ...]
    labels: Any = None
    left_out: tuple[Path, ...] = ()
    channel_names: tuple[str, ...] | None = None


def find_scans(
    root: str | Path, images: str | None = None, labels: str | None = None, channel: int | None = None
) -> FoundScans:
    """
    Finds the scans of a folder and their label maps.

    The layouts are, in this order: a list of the Medical Segmentation Decathlon (``dataset.json`` with ``training``);
    nnU-Net's raw data set (``imagesTr/*_0000.nii.gz``, ``labelsTr``, ``imagesTs``, ``labelsTs``); a folder of
    TotalSegmentator for each case (``s0001/ct.nii.gz``, ``s0001/segmentations/*.nii.gz``); a datastore of MONAI Label
    (``*.nii.gz``, ``labels/final/*.nii.gz``); a folder of images and one of label maps; a folder for each case with an
    image, or one for each channel, and a label map; and images beside label maps. A label map belongs to the image
    whose name differs from its own in nothing but words such as ``img``, ``ct``, ``label`` or ``seg``. A file of four
    axes has several channels where a ``dataset.json`` names as many, and is refused later on where none does, as it may
    be a series in time.

    Args:
        root: the folder.
        images: its folder of images, where its name tells nothing.
        labels: its folder of label maps, where its name tells nothing.
        channel: the only one to take of several channels, counted from 0; ``None`` for all.

    Raises:
        FileNotFoundError: When there is no such folder, or no scan in it.
        ValueError: When it is not clear which label map belongs to an image, a label map belongs to none, a case lacks
            a channel, or ``channel`` is none of those that there are.
    """
    folder = dataset_root(root)
    if not folder.is_dir():
        raise FileNotFoundError(f"dataset_dir must be a folder with scans, got {folder}, which is none.")
    volumes, others = _volumes(folder)
    content = _list_of(folder)
    finders: list[Callable[[], tuple[str, list[FoundScan]] | None]] = [
        lambda: _two_folders(folder, volumes, images, labels) if images or labels else None,
        lambda: _decathlon(folder, content),
        lambda: _nnunet(folder, volumes),
        lambda: _totalsegmentator(volumes),
        lambda: _datastore(folder, volumes),
        lambda: _two_folders(folder, volumes, None, None),
        lambda: _folder_for_each(folder, volumes),
        lambda: _one_folder(folder, volumes),
    ]
    found = next((result for find in finders if (result := find()) and result[1]), None)
    if found is None:
        named = (
            f" It has {some([str(file.relative_to(folder)) for file in others], 3)}: convert them to NIfTI."
            if others
            else ""
        )
        raise FileNotFoundError(
            "dataset_dir must hold NIfTI scans (.nii, .nii.gz) in one of the layouts of docs/data.md, got "
            f"{folder}, where there is none.{named}"
        )
    layout, scans = found
    scans = [_unpacked(scan, folder, len(named_channels(content) or ())) for scan in scans]
    names = _channel_names(scans, content)
    if channel is not None:
        scans = [_only(scan, channel) for scan in scans]
        names = names and (names[channel],)
    used = {
        file for scan in scans for file in (scan.image, *scan.channels, scan.packed, scan.label, *scan.masks.values())
    }
    return FoundScans(
        layout,
        tuple(sorted(scans, key=lambda scan: scan.image)),
        content.get("labels") or _list_of(folder, _LABELS_FILE) or None,
        tuple(sorted(set(volumes) - used | set(others))),
        names,
    )


def _unpacked(scan: FoundScan, folder: Path, number: int) -> FoundScan:
    """The scan with a file for each of so many channels, where one file has all."""
    if number < 2 or scan.channels or packed_channels(scan.image) != number:
        return scan
    place = folder / CHANNELS
    if scan.image.is_relative_to(folder):
        place /= scan.image.parent.relative_to(folder)
    files = [place / f"{nifti_stem(scan.image)}_{channel:04d}.nii.gz" for channel in range(number)]
    return replace(scan, image=files[0], channels=tuple(files[1:]), packed=scan.image)


def _only(scan: FoundScan, channel: int) -> FoundScan:
    """The scan with one of its channels alone."""
    files = (scan.image, *scan.channels)
    if not 0 <= channel < len(files):
        raise ValueError(f"channel must be from 0 to {len(files) - 1}, which {scan.image} has, got {channel}.")
    return replace(scan, image=files[channel], channels=())


def _channel_names(scans: Sequence[FoundScan], content: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Names of the channels: those of a ``dataset.json``, or what the names of the files of a case differ in."""
    number = 1 + len(scans[0].channels)
    named = named_channels(content)
    if named is not None and len(named) == number:
        return tuple(str(one) for one in named.values())
    _, parts = split_names([nifti_stem(file) for file in (scans[0].image, *scans[0].channels)])
    return None if number == 1 or all(part.isdecimal() for part in parts) else parts


def _volumes(folder: Path) -> tuple[list[Path], list[Path]]:
    """NIfTI files of a tree, and files of other formats that hold volumes; hidden ones are none."""
    volumes, others = [], []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != CHANNELS)
        for name in sorted(name for name in files if not name.startswith(".")):
            if is_nifti_name(name):
                volumes.append(Path(place, name))
            elif name.lower().endswith(_OTHER_FORMATS):
                others.append(Path(place, name))
    return volumes, others


def _list_of(folder: Path, name: str = "dataset.json") -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _decathlon(folder: Path, content: dict[str, Any]) -> tuple[str, list[FoundScan]] | None:
    # One that was made of this folder is made anew from it.
    if SPLIT_KEY in content or not isinstance(content.get("training"), list) or not content["training"]:
        return None
    scans = {}
    for section in ("training", "unlabeled", "validation", "test"):
        for entry in content.get(section) or []:
            named = entry if isinstance(entry, dict) else {"image": entry}
            images, labels = (_listed(folder, named.get(key)) for key in ("image", "label"))
            if images:
                label = labels[0] if labels and section != "unlabeled" else None
                is_test = section == "test" and bool(labels)
                scans[images[0]] = FoundScan(images[0], label, is_test=is_test, channels=tuple(images[1:]))
    return "a list of the Medical Segmentation Decathlon's form", list(scans.values())


def _listed(folder: Path, files: Any) -> list[Path]:
    """Files that an entry of a list names."""
    names = files if isinstance(files, list) else [files]
    return [Path(os.path.normpath(folder / name)) for name in names if isinstance(name, str)]


def _nnunet(folder: Path, volumes: Sequence[Path]) -> tuple[str, list[FoundScan]] | None:
    training = _in(volumes, folder / "imagesTr")
    if not training or not all(channel_of(file) for file in training):
        return None
    # Label maps have the names of cases: of images with these names the four digits are the number of a case.
    cases = {nifti_stem(file) for file in _in(volumes, folder / "labelsTr")}
    if any(nifti_stem(file) in cases for file in training):
        return None
    number = 1 + max(channel for file in training if (name := channel_of(file)) for channel in name[1:])
    scans = []
    for images, labels in (("imagesTr", "labelsTr"), ("imagesTs", "labelsTs")):
        files = _in(volumes, folder / images), _in(volumes, folder / labels)
        scans += _scans(*files, str, number=number, are_tests=images == "imagesTs")
    return "a raw data set of nnU-Net", scans


def _totalsegmentator(volumes: Sequence[Path]) -> tuple[str, list[FoundScan]] | None:
    masks: dict[Path, dict[str, Path]] = {}
    for file in volumes:
        if file.parent.name == "segmentations":
            masks.setdefault(file.parent.parent, {})[nifti_stem(file)] = file
    scans = [
        FoundScan(file, masks=masks.get(file.parent, {}))
        for file in volumes
        if nifti_stem(file).lower() in _TOTALSEGMENTATOR_SCANS and file.parent.name != "segmentations"
    ]
    if not any(scan.masks for scan in scans):
        return None
    return "a data set of TotalSegmentator", scans


def _datastore(folder: Path, volumes: Sequence[Path]) -> tuple[str, list[FoundScan]] | None:
    images = _in(volumes, folder)
    final = _in(volumes, folder / "labels" / "final")
    if not images or not (folder / "labels" / "final").is_dir():
        return None
    said = _said_of_labels(folder / "datastore_v2.json")
    return "a datastore of MONAI Label", [
        FoundScan(image, label, annotation=said.get(nifti_stem(image))) for image, label in _pairs(images, final, str)
    ]


def _said_of_labels(file: Path) -> dict[str, dict[str, Any]]:
    """What MONAI Label's list of its scans says of each final label, by the name of the scan."""
    if not file.is_file():
        return {}
    try:
        scans = json.loads(file.read_bytes())["objects"]
        infos = {name: scan["labels"].get("final", {}).get("info", {}) for name, scan in scans.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{file} must be a list of MONAI Label, got something else. Take it out of the way."
        ) from error
    return {name: named_annotation(info) for name, info in infos.items()}


def _two_folders(
    folder: Path, volumes: Sequence[Path], images: str | None, labels: str | None
) -> tuple[str, list[FoundScan]] | None:
    by_name = {one.name.lower(): one for one in folder.iterdir() if one.is_dir()}
    for name, given in (("images", images), ("labels", labels)):
        if given is not None and not (folder / given).is_dir():
            raise FileNotFoundError(f"{name} must be a folder in {folder}, got {given}, which is none.")
    first = folder / images if images else next((by_name[one] for one in IMAGE_FOLDERS if one in by_name), None)
    second = folder / labels if labels else next((by_name[one] for one in LABEL_FOLDERS if one in by_name), None)
    if first is None or second is None:
        return None
    files = _under(volumes, first), _under(volumes, second)
    number = _number_of_channels(*files)
    scans = _scans(*files, _case_name, (first, second), number)
    if (tests := by_name.get("imagests")) and first.name.lower() == "imagestr":
        kept = _in(volumes, tests), _in(volumes, by_name.get("labelsts", tests / "none"))
        scans += _scans(*kept, _case_name, number=number, are_tests=True)
    return f"images in {first.name}, label maps in {second.name}", scans


def _folder_for_each(folder: Path, volumes: Sequence[Path]) -> tuple[str, list[FoundScan]] | None:
    by_folder: dict[Path, list[Path]] = {}
    for file in volumes:
        by_folder.setdefault(file.parent, []).append(file)
    if folder in by_folder or not by_folder:
        return None
    scans, channels = [], set()
    for place, files in by_folder.items():
        labels = [file for file in files if _LABEL_KIND.search(nifti_stem(file))]
        images = [file for file in files if file not in labels]
        channels.add(split_names([nifti_stem(file) for file in images])[1] if len(images) > 1 else ())
        if not images or len(labels) > 1 or len(channels) > 1:
            raise ValueError(
                "A folder of a case must have one image, or one of each channel under the same names in all folders, "
                f"and one label map at most, got {len(images)} and {len(labels)} in {place}. Put the images into one "
                "folder and the label maps, under the same names, into another one."
            )
        scans.append(FoundScan(images[0], labels[0] if labels else None, channels=tuple(images[1:])))
    return "a folder for each case", scans


def _one_folder(folder: Path, volumes: Sequence[Path]) -> tuple[str, list[FoundScan]] | None:
    files = _in(volumes, folder)
    labels = [file for file in files if _LABEL_KIND.search(nifti_stem(file))]
    images = [file for file in files if file not in labels]
    if not images:
        return None
    layout = "images beside their label maps" if labels else "images alone"
    return layout, [FoundScan(*pair) for pair in _pairs(images, labels, _case_name)]


def _in(volumes: Iterable[Path], folder: Path) -> list[Path]:
    return [file for file in volumes if file.parent == folder]


def _under(volumes: Iterable[Path], folder: Path) -> list[Path]:
    return [file for file in volumes if file.is_relative_to(folder)]


def case_name(image: str | Path, root: Path) -> str:
    """The name of a scan: that of its file or, where that says nothing but what kind of file it is, of its folder."""
    path = Path(image)
    return nifti_stem(path) if _case_name(nifti_stem(path)) or path.parent == root else path.parent.name


def patient_name(image: str | Path, root: Path, pattern: str | None = None) -> str:
    """
    The patient whom a scan shows, as far as its name tells.

    Args:
        image: file of the scan.
        root: folder of the data set.
        pattern: regular expression whose first group finds the patient in the name of the scan; by default the name up
            to a word such as ``frame``, ``session``, ``visit`` or ``time``.

    Raises:
        ValueError: When the pattern finds nothing.

    Example:
        >>> patient_name("images/patient001_frame12.nii.gz", Path())
        'patient001'
    """
    name = case_name(image, root)
    if pattern is None:
        return re.sub(_VISIT, "", name, flags=re.IGNORECASE)
    found = re.search(pattern, name)
    if found is None or not found.groups() or not found[1]:
        raise ValueError(
            f"patient must be a regular expression whose first group finds the patient in the name of every scan, got "
            f"{pattern!r}, which finds none in {name}."
        )
    return found[1]


def _case_name(stem: str) -> str:
    """
    The name of a case: that of a file without what it says of the file's kind.

    Example:
        >>> [_case_name(stem) for stem in ("img0001", "label0001", "volume-12", "segmentation-12", "liver_3")]
        ['0001', '0001', '12', '12', 'liver_3']
    """
    return re.sub(r"[-_. ]+", "_", _KINDS.sub("", stem)).strip("_").lower()


def _number_of_channels(images: Sequence[Path], labels: Sequence[Path]) -> int:
    """Channels by nnU-Net's names, where a label map ``a`` shows that ``a_0000`` is a channel; 1 elsewhere."""
    cases = {nifti_stem(file) for file in labels}
    names = [name for file in images if (name := channel_of(file))]
    # Label maps have the names of cases: of images with these names the four digits are the number of a case.
    if any(nifti_stem(file) in cases for file in images) or not any((case, 0) in names for case in cases):
        return 1
    return 1 + max(channel for _, channel in names)


def _scans(
    images: Sequence[Path],
    labels: Sequence[Path],
    name_of: Callable[[str], str],
    folders: tuple[Path, Path] | None = None,
    number: int = 1,
    are_tests: bool = False,
) -> list[FoundScan]:
    """Scans of so many channels with their label maps, see ``_pairs``."""
    channels = {image: tuple(others) for image, *others in images_of_channels(images, number)}
    return [
        FoundScan(image, label, is_test=are_tests and label is not None, channels=channels[image])
        for image, label in _pairs(list(channels), labels, name_of, folders)
    ]


def _pairs(
    images: Sequence[Path],
    labels: Sequence[Path],
    name_of: Callable[[str], str],
    folders: tuple[Path, Path] | None = None,
) -> list[tuple[Path, Path | None]]:
    """
    Each image with its label map: that of the same name, or else of the same case, or of its name but for a channel.

    Of names that are there in several subfolders of ``folders``, those of images and of label maps, the subfolder
    decides.
    """
    found: dict[Path, Path] = {}
    if folders is not None:
        placed = {(file.relative_to(folders[1]).parent, nifti_stem(file)): file for file in labels}
        places = {file: (file.relative_to(folders[0]).parent, nifti_stem(file)) for file in images}
        found = {file: placed[place] for file, place in places.items() if place in placed}
    left, others = [file for file in images if file not in found], set(labels) - set(found.values())
    rounds: list[tuple[Callable[[str], str], Callable[[str], str], list[Path], list[Path]]] = [
        (str, str, left, sorted(others)),
        (name_of, name_of, left, sorted(others)),
        # Label maps have no channel, so four digits at their end are part of the case.
        (lambda name: _CHANNEL.sub("", name), str, [file for file in left if channel_of(file)], sorted(labels)),
    ]
    for of_image, of_label, some_images, some_labels in rounds:
        by_image, by_label = _by(of_image, some_images), _by(of_label, some_labels)
        for name, rivals in by_image.items():
            close = by_label.get(name, [])
            if close and any(file not in found for file in rivals):
                rivals += [file for file, label in found.items() if label in close and file not in rivals]
                if len(rivals) > 1 or len(close) > 1:
                    named = [f"{file.parent.name}/{file.name}" for file in (rivals if len(close) == 1 else close)]
                    raise ValueError(
                        f"The names must tell which label map belongs to {rivals[0]}, got {close[0].name} for "
                        f"{' and '.join(named[:2])}. Give both files of a case the same name."
                    )
                found[rivals[0]] = close[0]
    if orphans := sorted(set(labels) - set(found.values())):
        raise ValueError(
            f"Each label map must belong to an image, got {len(orphans)} that belong to none, such as {orphans[0]}. "
            "Give both files of a case the same name, and where files of several cases have one, the same subfolder."
        )
    return [(image, found.get(image)) for image in images]


def _by(name_of: Callable[[str], str], files: Iterable[Path]) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    for file in files:
        found.setdefault(name_of(nifti_stem(file)), []).append(file)
    return found
