"""The command ``autolabel``: a data set whose unlabeled scans have label maps of a model."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from tqdm import tqdm

from dinomix_monai.core.files import atomic_write, check_writable, write_json
from dinomix_monai.data import Datalist, case_name
from dinomix_monai.prediction import Prediction, TrainedModel
from dinomix_monai.volumes import Annotation, Image, channel_files, first_file, image_name, write_volume

__all__ = ["LAYOUTS", "Labeled", "autolabel", "place_nifti", "scan_names", "write_nnunet_raw"]

LAYOUTS = ("monailabel", "nnunet")
"""Layouts of the data set: a datastore of MONAI Label, or a raw data set of nnU-Net v2."""

_TABLE = "uncertainty.csv"


class Labeled(NamedTuple):
    """
    A scan of the new data set.

    Args:
        name: its name there.
        image: its file, or those of its channels.
        label: its label map, a file or a volume.
        uncertainty: of the model, where the label map is its own; ``None`` where people have drawn it.
        annotation: what these people have looked for, where that is not all.
    """

    name: str
    image: Image
    label: Path | nib.Nifti1Image
    uncertainty: float | None = None
    annotation: Annotation | None = None


def autolabel(
    model: TrainedModel, datalist: Datalist, out_dir: str | Path, layout: str = "monailabel", copy: bool = False
) -> Iterator[tuple[str, float]]:
    """
    Segments all unlabeled scans of a data set, and makes a data set of them and of the labeled training scans.

    Validation and test cases are left out, so a model that is trained on the new data set can be scored by them.
    ``uncertainty/NAME.nii.gz`` is the uncertainty map of each scan that the model has segmented, and
    ``uncertainty.csv`` lists these scans, the least certain one first: the mean uncertainty where the label map has a
    class.

    Args:
        model: the model.
        datalist: the data set.
        out_dir: folder to make.
        layout: one of ``LAYOUTS``. In a datastore of MONAI Label, label maps of people lie under ``labels/final`` and
            those of the model under ``labels/original``, as MONAI Label keeps its own proposals. In a raw data set of
            nnU-Net all of them are labels of training cases.
        copy: whether scans are copied; otherwise they are links to where they lie, but for files that have to be
            compressed.

    Yields:
        Name and uncertainty of each scan, once it is written.

    Raises:
        FileExistsError: When there is something in ``out_dir``.
        ValueError: When ``layout`` is none, or cannot hold images of several channels or label maps that are not
            complete, or model and data set do not have the same classes and as many channels.
        OSError: When ``out_dir`` cannot be written to, which is known before the first scan, or a file cannot.
    """
    root = Path(out_dir).expanduser().absolute()
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {', '.join(LAYOUTS)}, got {layout!r}.")
    if root.exists() and any(root.iterdir()):
        raise FileExistsError(f"out_dir must be empty or not there yet, because nothing is replaced, got {root}.")
    if datalist.num_channels != model.num_channels:
        raise ValueError(
            f"The data set must have images of the channels of the model, {model.num_channels}, got "
            f"{datalist.num_channels}."
        )
    if layout == "monailabel" and model.num_channels > 1:
        raise ValueError(
            f"layout must be nnunet for images of {model.num_channels} channels, because a datastore of MONAI Label "
            "has one file for each, got monailabel."
        )
    partial_labels = datalist.partial_labels
    if partial_labels is not None and layout == "nnunet":
        raise ValueError(
            "layout must be monailabel for label maps that are not complete, because nnU-Net would take what nobody "
            "has looked for as background, got nnunet."
        )
    if tuple(datalist.class_names) != tuple(model.class_names):
        raise ValueError(
            f"The data set must have the classes of the model, {', '.join(model.class_names)}, got "
            f"{', '.join(datalist.class_names)}."
        )
    check_writable(root, "out_dir")
    names = scan_names([image_name(case["image"]) for case in (*datalist.training, *datalist.unlabeled)])
    given = len(datalist.training)

    def labeled() -> Iterator[Labeled]:
        for name, case in zip(names[:given], datalist.training):
            said = None if partial_labels is None else partial_labels.annotations.get(case["label"])
            yield Labeled(name, case["image"], Path(case["label"]), annotation=said)
        for name, case in zip(names[given:], tqdm(datalist.unlabeled, "Labeling", unit="scan", disable=None)):
            answer = model.predict(case["image"])
            write_volume(answer.uncertainty, root / "uncertainty" / f"{name}.nii.gz")
            yield Labeled(name, case["image"], answer.label, _mean_uncertainty(answer))

    found: dict[str, float] = {}
    writer = (
        partial(write_nnunet_raw, channels=_nnunet_channels(datalist, model))
        if layout == "nnunet"
        else _write_datastore
    )
    for scan in writer(root, labeled(), model.class_names, copy):
        if scan.uncertainty is not None:
            found[scan.name] = scan.uncertainty
            yield scan.name, scan.uncertainty
    with (root / _TABLE).open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["scan", "uncertainty"])
        rows.writerows((name, f"{value:.4f}") for name, value in sorted(found.items(), key=lambda pair: -pair[1]))


def scan_names(images: Sequence[str | Path]) -> list[str]:
    """
    A name for each scan that no other has: that of its file, with its folders in front where two files have one name.

    Example:
        >>> scan_names(["a/ct.nii.gz", "b/ct.nii.gz", "b/x.nii"])
        ['a', 'b', 'x']
        >>> scan_names(["1/x.nii", "2/x.nii"])
        ['1_x', '2_x']
    """
    root = Path(os.path.commonpath([Path(image).absolute().parent for image in images]))
    names = [case_name(image, root) for image in images]
    folders = [Path(image).absolute().parent.relative_to(root).parts for image in images]
    return ["_".join((*parts, name)) if names.count(name) > 1 else name for name, parts in zip(names, folders)]


def write_nnunet_raw(
    root: Path,
    scans: Iterable[Labeled],
    class_names: Sequence[str],
    copy: bool = False,
    channels: Sequence[str] = ("CT",),
) -> Iterator[Labeled]:
    """
    Writes a raw data set of nnU-Net v2, scan by scan.

    Args:
        root: its folder.
        scans: the training cases.
        class_names: names by label value, background first.
        copy: whether scans are copied, see :func:`autolabel`.
        channels: what nnU-Net calls the intensities of each channel, and normalizes them by.

    Yields:
        Each scan, once it is written.
    """
    count = 0
    for scan in scans:
        for number, file in enumerate(channel_files(scan.image)):
            place_nifti(Path(file), root / "imagesTr" / f"{scan.name}_{number:04}.nii.gz", copy)
        _write(scan.label, root / "labelsTr" / f"{scan.name}.nii.gz", copy)
        count += 1
        yield scan
    about = {
        "channel_names": {str(number): name for number, name in enumerate(channels)},
        "labels": {name: value for value, name in enumerate(class_names)},
        "numTraining": count,
        "file_ending": ".nii.gz",
    }
    write_json(root / "dataset.json", about)


def _write_datastore(
    root: Path, scans: Iterable[Labeled], class_names: Sequence[str], copy: bool = False
) -> Iterator[Labeled]:
    said: dict[str, Annotation] = {}
    for scan in scans:
        if scan.annotation is not None:
            said[scan.name] = scan.annotation
        place_nifti(Path(first_file(scan.image)), root / f"{scan.name}.nii.gz", copy)
        _write(
            scan.label,
            root / "labels" / ("final" if scan.uncertainty is None else "original") / f"{scan.name}.nii.gz",
            copy,
        )
        yield scan
    write_json(root / "labels.json", {str(value): name for value, name in enumerate(class_names)})
    if said:
        # MONAI Label lists the other scans itself.
        entry = {"ext": ".nii.gz"}
        objects = {
            name: {"image": entry, "labels": {"final": {**entry, "info": annotation.entries(class_names)}}}
            for name, annotation in said.items()
        }
        write_json(root / "datastore_v2.json", {"name": root.name, "description": "", "objects": objects})


def _write(label: Path | nib.Nifti1Image, target: Path, copy: bool) -> None:
    if isinstance(label, Path):
        place_nifti(label, target, copy)
    else:
        write_volume(label, target)


def place_nifti(source: Path, target: Path, copy: bool = False) -> None:
    """
    Puts a NIfTI file under another name, which ends in ``.nii.gz``.

    Args:
        source: the file.
        target: what to make; its folder is made if it is not there.
        copy: whether a compressed file is copied; otherwise a link leads to it. Another one is written compressed.

    Raises:
        OSError: When it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.name.lower().endswith(".gz"):
        if copy:
            shutil.copyfile(source, target)
        else:
            target.symlink_to(source.absolute())
    else:
        # Byte by byte, so that the header says what it said.
        with (
            source.open("rb") as file,
            atomic_write(target) as packed,
            gzip.GzipFile("", "wb", 1, packed, 0) as stream,
        ):
            shutil.copyfileobj(file, stream)


def _nnunet_channels(datalist: Datalist, model: TrainedModel) -> list[str]:
    """The names that the data set has; nnU-Net normalizes a channel called CT by one range, and others scan by scan."""
    if datalist.has_channel_names:
        return list(datalist.channel_names)
    return ["MR" if window is None else "CT" for window in model.windows]


def _mean_uncertainty(answer: Prediction) -> float:
    inside = np.asanyarray(answer.label.dataobj) > 0
    values = np.asanyarray(answer.uncertainty.dataobj)
    # Where nothing was found, everything is in question.
    return float(values[inside].mean()) if inside.any() else 1.0
