"""Scans to segment."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from dinomix_monai.core.text import some
from dinomix_monai.volumes import (
    VolumeError,
    is_answer,
    is_label_map,
    is_nifti_name,
    label_path,
    nifti_stem,
    open_volume,
)

__all__ = ["image_files", "left_out"]

logger = logging.getLogger(__name__)


def image_files(path: str | Path, output_dir: str | Path | None = None) -> list[dict[str, str]]:
    """
    NIfTI images to segment: one file, or all of a folder in the order of their names.

    All headers are read, so that what cannot be segmented is known before the first case. What a folder has beside
    scans (other formats, subfolders, label maps that this package wrote) is left out, and the log names it.

    Args:
        path: file or folder.
        output_dir: where the label maps will be written; ``None`` if nowhere.

    Raises:
        FileNotFoundError: When there is no such file or folder, or no NIfTI in the folder.
        ValueError: When a file is no NIfTI, shorter than its header says or not one volume, its header contradicts
            itself, two have the same name but for ``.gz``, or a label map would be written over what is none of this
            package.
    """
    root = Path(path).expanduser().absolute()
    if not root.exists():
        raise FileNotFoundError(
            f"dataset_dir must be a NIfTI file or a folder of such, got {root}, which does not exist."
        )
    images = [root] if root.is_file() else [file for file in sorted(root.iterdir()) if _is_scan(file)]
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
        try:
            open_volume(image)
        except VolumeError as error:
            raise error.of(image) from error
    if output_dir is not None:
        _check_outputs(images, output_dir)
    return [{"image": str(file)} for file in images]


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
