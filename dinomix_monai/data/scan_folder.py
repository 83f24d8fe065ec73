"""Scans to segment."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from dinomix_monai.core.text import some
from dinomix_monai.volumes import (
    Image,
    VolumeError,
    as_image,
    is_answer,
    is_label_map,
    is_nifti_name,
    label_path,
    nifti_stem,
    open_volume,
)

__all__ = ["channel_of", "image_files", "images_of_channels", "left_out"]

logger = logging.getLogger(__name__)

_CHANNEL = re.compile(r"(.+)_(\d{4})")


def image_files(path: Image, output_dir: str | Path | None = None, num_channels: int = 1) -> list[dict[str, Any]]:
    """
    NIfTI images to segment: one file, or all of a folder in the order of their names.

    Images of several channels have a file for each, named as nnU-Net does, ``NAME_0000.nii.gz``, ``NAME_0001.nii.gz``
    and so on. Any of them stands for all that lie beside it; files with other names are given in a list.

    All headers are read, so that what cannot be segmented is known before the first case. What a folder has beside
    scans (other formats, subfolders, label maps that this package wrote) is left out, and the log names it.

    Args:
        path: file or folder, or the files of the channels of one image.
        output_dir: where the label maps will be written; ``None`` if nowhere.
        num_channels: channels of an image.

    Returns:
        ``image`` of each case: its file, or a list with those of its channels.

    Raises:
        FileNotFoundError: When there is no such file or folder, or no NIfTI in the folder.
        ValueError: When an image has another number of channels, a file is no NIfTI, shorter than its header says or
            not one volume, its header contradicts itself, two have the same name but for ``.gz``, or a label map would
            be written over what is none of this package.
    """
    if isinstance(path, (list, tuple)):
        return _given(path, output_dir, num_channels)
    root = Path(str(path)).expanduser().absolute()
    if not root.exists():
        raise FileNotFoundError(
            f"dataset_dir must be a NIfTI file or a folder of such, got {root}, which does not exist."
        )
    images = _beside(root, num_channels) if root.is_file() else [f for f in sorted(root.iterdir()) if _is_scan(f)]
    others = [] if root.is_file() else left_out(root, images)
    if not images:
        found = f" with {some(others)}" if others else ""
        raise FileNotFoundError(
            f"dataset_dir must be a NIfTI file (.nii, .nii.gz) or a folder with such files, got {root}{found}."
        )
    if output_dir is not None and Path(output_dir).expanduser().absolute() == root:
        others = [name for name in others if name != "logs/"]
    if others:
        logger.warning("Left out of %s, because no NIfTI scan: %s.", root, some(others))
    by_stem: dict[str, Path] = {}
    for image in images:
        other = by_stem.setdefault(nifti_stem(image), image)
        if other is not image:
            raise ValueError(f"Images must differ in name but for .gz, got {other} and {image.name}.")
        _check_readable(image)
    groups = images_of_channels(images, num_channels)
    if output_dir is not None:
        _check_outputs([files[0] for files in groups], output_dir)
    return [{"image": as_image(files)} for files in groups]


def _given(files: Sequence[str | PathLike], output_dir: str | Path | None, num_channels: int) -> list[dict[str, Any]]:
    if len(files) != num_channels:
        raise ValueError(f"An image must have {num_channels} channels, a file for each, got {len(files)} files.")
    paths = [Path(file).expanduser().absolute() for file in files]
    for file in paths:
        _check_readable(file)
    if output_dir is not None:
        _check_outputs(paths[:1], output_dir)
    return [{"image": as_image(paths)}]


def _check_readable(image: Path) -> None:
    try:
        open_volume(image)
    except VolumeError as error:
        raise error.of(image) from error


def _beside(file: Path, num_channels: int) -> list[Path]:
    """The channels of the image that a file belongs to."""
    if num_channels == 1 or (name := channel_of(file)) is None:
        return [file]
    return [other for other in sorted(file.parent.iterdir()) if _is_scan(other) and channel_of(other, name[0])]


def channel_of(file: Path, image: str | None = None) -> tuple[str, int] | None:
    """Image and channel that the name of a file says, ``NAME_0001.nii.gz``; ``None`` for another name or image."""
    found = _CHANNEL.fullmatch(nifti_stem(file))
    return None if found is None or image not in (None, found[1]) else (found[1], int(found[2]))


def images_of_channels(files: Sequence[Path], num_channels: int) -> list[list[Path]]:
    """
    Files of images of several channels, named ``NAME_0000.nii.gz``, ``NAME_0001.nii.gz`` and so on, image by image.

    Raises:
        ValueError: When a file has another name, or an image has other channels.
    """
    if num_channels == 1:
        return [[file] for file in files]
    images: dict[str, list[Path]] = {}
    for file in files:
        if (name := channel_of(file)) is None:
            raise ValueError(
                f"An image of {num_channels} channels must have a file for each, named NAME_0000.nii.gz, "
                f"NAME_0001.nii.gz and so on, got {file}."
            )
        images.setdefault(name[0], []).append(file)
    for image, found in images.items():
        if [channel_of(file) for file in found] != [(image, channel) for channel in range(num_channels)]:
            raise ValueError(
                f"An image must have the channels 0 to {num_channels - 1}, got {image} with "
                f"{some([file.name for file in found])}."
            )
    return list(images.values())


def left_out(folder: Path, images: Sequence[Path]) -> list[str]:
    """Names of what a folder has beside images; folders with a slash, and no hidden files."""
    chosen = set(images)
    return [
        f"{file.name}/" if file.is_dir() else file.name
        for file in sorted(folder.iterdir())
        if file not in chosen and not file.name.startswith(".")
    ]


def _is_scan(file: Path) -> bool:
    # Hidden files are what macOS leaves in archives: they have the name of an image and hold none.
    if file.name.startswith(".") or not is_nifti_name(file) or file.is_dir():
        return False
    try:
        return not is_answer(open_volume(file))
    except VolumeError:  # what is wrong with it is said later
        return True


def _check_outputs(images: Sequence[Path], output_dir: str | Path) -> None:
    for image in images:
        # One that cannot be read is no loss: a run that was killed may have left it.
        if (path := label_path(output_dir, image)).is_file() and _has_label_intent(path) is False:
            raise ValueError(
                f"output_dir must not hold other files under the names of label maps, got {path}, which that of "
                f"{image.name} would replace and which this package did not write. Pass another output_dir."
            )


def _has_label_intent(file: Path) -> bool | None:
    """``None`` for a file that cannot be read."""
    try:
        return is_label_map(open_volume(file))
    except VolumeError:
        return None
