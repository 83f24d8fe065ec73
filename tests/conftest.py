from __future__ import annotations

import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from matplotlib.figure import Figure
from safetensors.torch import save_file

from dinomix_monai.teacher import FoundationTeacher


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch):
    """What a run changes of the process is put back."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    root, handlers = logging.getLogger(), list(logging.getLogger().handlers)
    sigterm = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, sigterm)
    for handler in [other for other in root.handlers if other not in handlers]:
        root.removeHandler(handler)
        handler.close()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Writes an array as NIfTI into the temporary folder, by default with voxels of 2 x 2 x 3 mm; returns its path."""

    def write(name: str, array: object, affine: object = None, dtype: object = np.float32) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        affine = np.diag([-2, -2, 3, 1]) if affine is None else affine
        nib.save(nib.Nifti1Image(np.asarray(array, dtype=dtype), affine), path)
        return str(path)

    return write


@pytest.fixture
def noise() -> Callable[..., np.ndarray]:
    """Whole numbers from -100 to 100, others for each seed."""

    def draw(seed: int = 0, shape: tuple[int, ...] = (6, 5, 4)) -> np.ndarray:
        return np.random.default_rng(seed).integers(-100, 101, shape)

    return draw


@pytest.fixture
def pictures_are_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """A report's pictures are empty files, because to render them takes longer than a toy's training."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).write_bytes(b""))


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of weights of ``test_vit``, timm's smallest ViT, which nobody has trained."""
    teacher = FoundationTeacher("test_vit", weights="none")
    path = tmp_path_factory.mktemp("weights") / "teacher.safetensors"
    save_file({name: value.contiguous() for name, value in teacher.model.state_dict().items()}, path)
    return path


_HOLD = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
input()
"""


@pytest.fixture
def locked_elsewhere() -> Iterator[Callable[[Path], subprocess.Popen]]:
    """Starts a process that holds the lock of a folder until it is killed."""
    started: list[subprocess.Popen] = []

    def start(folder: Path) -> subprocess.Popen:
        command = [sys.executable, "-c", _HOLD, str(folder / ".lock")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
