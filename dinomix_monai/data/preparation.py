"""From a publisher's raw folder to the data set that a published protocol is trained and scored on."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, wait
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import nibabel as nib
import numpy as np
import torch
from tqdm import tqdm

from dinomix_monai.data.protocol import Protocol
from dinomix_monai.data.raw_case import RawCase, find_cases
from dinomix_monai.data.resizing import resize_image, resize_label, resized_affine, scale_to_unit

__all__ = ["prepare_dataset"]

_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)


def prepare_dataset(
    protocol: Protocol, raw_dir: str | Path, out_dir: str | Path, labeled: int | None = None, workers: int = 4
) -> Path:
    """
    Writes the volumes of a protocol as compressed NIfTI, ``dataset.json`` and ``originals.json``.

    All cases are found and checked before anything is written, and the folder appears under its name when it is
    complete. Labels of unlabeled cases are neither opened nor written. ``originals.json`` has the shape and the affine
    that each image came with, so that predictions can be taken back there.

    Args:
        protocol: see :func:`dinomix_monai.data.read_protocol`.
        raw_dir: folder of the raw data set.
        out_dir: folder to make. One that holds this very data set is left as it is.
        labeled: share of labeled training cases in percent, by default the one that the protocol is known for.
        workers: processes; each holds one case at a time.

    Returns:
        The path of ``dataset.json``.

    Raises:
        ValueError: When the protocol has no such share, ``workers`` is less than 1, or cases are not as they must be.
        FileNotFoundError: When cases are missing.
        FileExistsError: When there is something else in ``out_dir``.
    """
    if workers < 1:
        raise ValueError(f"workers must be >= 1, got {workers}.")
    labeled = protocol.default_labeled if labeled is None else labeled
    datalist = json.dumps(_datalist(protocol, labeled), indent=1) + "\n"
    root = Path(out_dir).expanduser().resolve()
    if not _is_finished(root, datalist):
        cases = find_cases(protocol, raw_dir, protocol.sections(labeled))
        # One thread in each process, as in PyTorch's data loaders.
        with ProcessPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            _check(pool, cases, len(protocol.class_names))
            root.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{root.name}.", dir=root.parent) as folder:
                complete = _write(pool, cases, protocol, Path(folder) / root.name, datalist)
                if root.is_dir():
                    root.rmdir()  # it is empty
                complete.rename(root)
    return root / "dataset.json"


def _datalist(protocol: Protocol, labeled: int) -> dict[str, Any]:
    def entry(case: str, section: str) -> dict[str, str]:
        keys = ("image",) if section == "unlabeled" else ("image", "label")
        return {key: f"{key}s/{case}.nii.gz" for key in keys}

    return {
        "name": protocol.title,
        "description": protocol.description,
        "protocol": {
            "dataset": protocol.dataset,
            "name": protocol.name,
            "labeled_percent": labeled,
            "source": protocol.source,
            # What the voxels depend on: a folder that was prepared otherwise is not the same data set.
            "grid": protocol.grid,
            "window": protocol.window,
            "axes": protocol.axes,
            "spacing_mm": protocol.spacing_mm,
        },
        "labels": {str(value): name for value, name in enumerate(protocol.class_names)},
        **{section: [entry(case, section) for case in cases] for section, cases in protocol.sections(labeled).items()},
    }


def _is_finished(root: Path, datalist: str) -> bool:
    # The folder is moved here when it is complete, so its list tells all.
    if (root / "dataset.json").is_file() and (root / "dataset.json").read_text() == datalist:
        return True
    if root.is_file() or (root.is_dir() and any(root.iterdir())):
        raise FileExistsError(
            f"out_dir must be new, empty or hold the same data set, got {root}. Choose another folder or remove it."
        )
    return False


def _check(pool: Executor, cases: Sequence[RawCase], num_classes: int) -> None:
    problems = _progress(pool, partial(RawCase.problem, num_classes=num_classes), cases, "Checking")
    if found := [f"{case.id}: {problem}" for case, problem in zip(cases, problems) if problem]:
        raise ValueError("raw_dir must hold cases that can be prepared, got\n  " + "\n  ".join(found))
    for doubt in filter(None, (case.doubt for case in cases)):
        logger.warning("%s", doubt)


def _write(pool: Executor, cases: Sequence[RawCase], protocol: Protocol, folder: Path, datalist: str) -> Path:
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    originals = _progress(pool, partial(_write_case, protocol=protocol, folder=folder), cases, "Preparing")
    content = {case.id: original for case, original in zip(cases, originals)}
    (folder / "originals.json").write_text(json.dumps(content) + "\n")
    (folder / "dataset.json").write_text(datalist)
    return folder


def _write_case(case: RawCase, protocol: Protocol, folder: Path) -> dict[str, list]:
    """Writes a case, and returns shape and affine of its original."""
    shape, affine = case.shape("image"), case.affine
    new_affine = resized_affine(affine, shape, protocol.grid or shape)
    for key in case.files:
        try:
            volume = _prepared(case.read(key), key, protocol)
        except ValueError as error:
            raise ValueError(f"{case.id}: {error}") from error
        nifti = nib.Nifti1Image(volume, new_affine)
        nifti.header.set_xyzt_units("mm")
        if not case.is_known:
            # Without a code it still lies where it does now: all about the center of the volume.
            nifti.set_sform(new_affine, code="unknown")
        nib.save(nifti, folder / f"{key}s" / f"{case.id}.nii.gz")
    return {"shape": list(shape), "affine": affine.tolist()}


def _prepared(volume: np.ndarray, key: str, protocol: Protocol) -> np.ndarray:
    if key == "label":
        return volume.astype(np.uint8) if protocol.grid is None else resize_label(volume, protocol.grid)
    volume = volume.astype(np.float32)
    if protocol.grid is not None:
        volume = resize_image(volume, protocol.grid)
    return volume if protocol.window is None else scale_to_unit(volume, protocol.window)


def _progress(
    pool: Executor, function: Callable[[RawCase], _Result], cases: Sequence[RawCase], description: str
) -> list[_Result]:
    results = [pool.submit(function, case) for case in cases]
    try:
        return [result.result() for result in tqdm(results, desc=description, unit="case")]
    finally:
        # After an error nothing more may be written: the folder is about to be removed.
        for result in results:
            result.cancel()
        wait(results)
