"""
Whether files that come from outside can do anything but be refused.

    python tests/fuzz.py --seconds 60

Changes a sound datalist, checkpoint and volume at random, and opens what comes out as training would. Nothing but the
errors that name the file may come of it: no other exception, no file outside of the data set, no code, and no more
memory than the sound files need and half a GiB. An input that does something else is kept in ``--out_dir`` and ends the
run with exit code 1. Linux only.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import random
import resource
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import fire
import nibabel as nib
import numpy as np
import torch

from dinomix_monai.core.tensor_file import read_tensor_file
from dinomix_monai.data import CaseCheck, check_dataset, findings_table, image_files, read_datalist

ROOM = 2**29
"""Bytes of memory that opening a file may take."""
MADE = "made"
"""Folder that a file makes when code in it is run."""
ODD = [
    None,
    True,
    -1,
    1e308,
    2**70,
    "",
    "..",
    "../a.nii",
    "/etc/passwd",
    "a\0.nii",
    "\ud800",
    "²",
    [],
    {},
    [[]],
    {"": 0},
]


def main(seconds: float = 60, seed: int = 0, out_dir: str = "fuzz_failures") -> None:
    """Fuzzes each door for a third of the time."""
    warnings.simplefilter("ignore")
    draw, failures = random.Random(seed), 0
    with tempfile.TemporaryDirectory() as folder:
        root = sound_folder(Path(folder))
        _bound_memory()
        for name, door in DOORS.items():
            end, tried = time.monotonic() + seconds / 3, 0
            while time.monotonic() < end:
                file, open_it = door(draw, root)
                tried += 1
                try:
                    open_it()
                except Exception:
                    failures += 1
                    _keep(file, Path(out_dir) / f"{name}_{seed}_{tried}")
                if (root.parent / MADE).exists():
                    sys.exit(f"{file} has run code.")
            print(f"{name}: {tried} files opened", flush=True)
    print(f"{failures} did something else than to be refused.")
    sys.exit(1 if failures else 0)


def sound_folder(parent: Path) -> Path:
    """A data set of one image without a list."""
    root = parent / "data"
    root.mkdir()
    values = np.random.default_rng(0).normal(0, 100, (9, 8, 7)).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag([2.0, 2.0, 3.0, 1.0])), root / "a.nii")
    return root


def _bound_memory() -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    # Threads of the check take address space of their own without using it.
    threads = (os.cpu_count() or 1) * 2**27
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM + threads, resource.RLIM_INFINITY))


def _keep(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file.name).write_bytes(file.read_bytes())
    (folder / "traceback.txt").write_text(traceback.format_exc())


def _datalist(draw: random.Random, root: Path) -> tuple[Path, Callable[[], Any]]:
    case = {"image": "a.nii", "label": "a.nii"}
    content: Any = {"labels": {"0": "background", "1": "liver"}, "training": [case], "unlabeled": ["a.nii"], "test": []}
    for _ in range(draw.randint(1, 3)):
        content = _changed(draw, content)
    text = json.dumps(content).encode()
    file = root / "dataset.json"
    file.write_bytes(_damaged(draw, text) if draw.random() < 0.3 else text)

    def open_it() -> None:
        try:
            for _, found in read_datalist(root).cases():
                assert all(Path(path).is_relative_to(root) for path in found.values()), found
        except (ValueError, FileNotFoundError):
            pass
        # Also as it is shown.
        findings_table(check_dataset(root)).encode()

    return file, open_it


def _changed(draw: random.Random, item: Any) -> Any:
    """With one part replaced, removed or repeated."""
    if not isinstance(item, (dict, list)) or not item or draw.random() < 0.15:
        return draw.choice(ODD)
    keys = list(item) if isinstance(item, dict) else list(range(len(item)))
    key, copy = draw.choice(keys), item.copy()
    kind = draw.random()
    if kind < 0.15:
        del copy[key]
    elif kind < 0.3 and isinstance(copy, dict):
        copy[draw.choice(["image", "0", "1", "-1", "99999999999", "²", ""])] = copy[key]
    else:
        copy[key] = _changed(draw, copy[key])
    return copy


def _checkpoint(draw: random.Random, root: Path) -> tuple[Path, Callable[[], Any]]:
    made, file = root.parent / MADE, root / "state.pt"
    kind = draw.random()
    if kind < 0.2:
        # A pickle that runs code, bare or where torch.save has put its own.
        code = pickle.dumps(_Command(made), protocol=draw.choice([0, 2, 4]))
        content = code if draw.random() < 0.3 else _with_pickle(code)
    elif kind < 0.4:
        content = _with_pickle(_damaged(draw, _parts()["archive/data.pkl"]), draw.choice([0, zipfile.ZIP_DEFLATED]))
    else:
        content = _damaged(draw, _saved())
    file.write_bytes(content)

    def open_it() -> None:
        try:
            found = read_tensor_file(file, "path", "the state of a run")
            assert isinstance(found, dict)
        except ValueError:
            pass

    return file, open_it


class _Command:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.folder),)


def _saved() -> bytes:
    buffer = io.BytesIO()
    torch.save({"network": {"weight": torch.arange(60.0).reshape(3, 20)}, "trainer": {"epoch": 3}}, buffer)
    return buffer.getvalue()


def _parts() -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(_saved())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _with_pickle(content: bytes, compression: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, part in {**_parts(), "archive/data.pkl": content}.items():
            archive.writestr(name, part)
    return buffer.getvalue()


def _nifti(draw: random.Random, root: Path) -> tuple[Path, Callable[[], Any]]:
    content = bytearray((root / "a.nii").read_bytes())
    for _ in range(draw.randint(1, 4)):
        # Fields of 2, 4 or 8 bytes of the header.
        width = draw.choice([2, 4, 8])
        place = draw.randrange(0, 352 - width)
        value = draw.choice([0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1) - 1, draw.randrange(2 ** (8 * width))])
        content[place : place + width] = value.to_bytes(width, draw.choice(["little", "big"]))
    content = bytearray(_damaged(draw, bytes(content))) if draw.random() < 0.2 else content
    packed = draw.random() < 0.5
    file = root / ("b.nii.gz" if packed else "b.nii")
    file.write_bytes(gzip.compress(bytes(content), 1) if packed else bytes(content))

    def open_it() -> None:
        CaseCheck(3, (4, 4, 4), (2, 2, 3), (-160, 240))("training", {"image": str(file), "label": str(file)})
        with suppress(ValueError):
            image_files(file)

    return file, open_it


def _damaged(draw: random.Random, content: bytes) -> bytes:
    """Some bytes of it changed, cut off or put twice."""
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    kind = draw.random()
    if kind < 0.2:
        return bytes(changed[: draw.randrange(len(changed) + 1)])
    if kind < 0.3:
        place = draw.randrange(len(changed) + 1)
        return bytes(changed[:place] + changed[place // 2 :])
    return bytes(changed)


DOORS = {"datalist": _datalist, "checkpoint": _checkpoint, "nifti": _nifti}
"""What changes a file of a folder, and gives it and what opens it."""


if __name__ == "__main__":
    fire.Fire(main)
