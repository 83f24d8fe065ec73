from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient

from dinomix_monai.label import AppFolder, prepare_app_folder
from tests.toys import TOY, make_toy_phantom

ROOT = Path(__file__).parents[2]
BUNDLE = ROOT / "bundle"
ORGANS = ["spleen", "right kidney", "left kidney"]

SETTINGS = {
    **TOY,
    "planned_for": None,
    "epochs": 2,
    "steps_per_epoch": 2,
    "val_interval": 1,
    "amp": False,
}


@pytest.fixture(autouse=True)
def _trainings_render_nothing(pictures_are_empty: None) -> None:
    """The pictures themselves are tested in ``tests/report``."""


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans of thirteen organs, all with labels."""
    return make_toy_phantom(tmp_path_factory.mktemp("phantom"), cases=(2, 4, 0, 0))


@pytest.fixture
def studies(phantom: Path, tmp_path: Path) -> Path:
    """Three scans without labels."""
    folder = tmp_path / "studies"
    folder.mkdir()
    for number in (1, 2, 3):
        shutil.copy(phantom / "images" / f"phantom_00{number}.nii", folder / f"case_{number}.nii")
    return folder


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., AppFolder]:
    def make(**arguments: Any) -> AppFolder:
        return prepare_app_folder(tmp_path / "app", BUNDLE, **{"settings": SETTINGS, **arguments})

    return make


@pytest.fixture
def give_model() -> Callable[[AppFolder], None]:
    """Puts a model with random weights into an app, as a training leaves it."""

    def give(folder: AppFolder, seed: int = 0) -> None:
        torch.manual_seed(seed)
        network = folder.bundle.parser("inference").get_parsed_content("network_def")
        torch.save(network.state_dict(), folder.model_file)

    return give


@pytest.fixture
def client(studies: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[AppFolder], TestClient]]:
    """Serves an app in this process."""
    # Read where MONAI Label is imported first, and set on its settings for later tests.
    os.environ.update(MONAI_LABEL_DATASTORE_AUTO_RELOAD="false")
    from monailabel.app import app
    from monailabel.config import settings
    from monailabel.interfaces.utils.app import clear_cache

    started = []

    def start(folder: AppFolder) -> TestClient:
        monkeypatch.setattr(tempfile, "tempdir", str(folder.root / "tmp"))
        monkeypatch.setattr(settings, "MONAI_LABEL_APP_DIR", str(folder.root))
        monkeypatch.setattr(settings, "MONAI_LABEL_STUDIES", str(studies))
        monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(folder.root / "sessions"))
        started.append(TestClient(app))
        return started[-1].__enter__()

    yield start
    for one in started:
        one.__exit__(None, None, None)
    clear_cache()


@pytest.fixture
def save_label() -> Callable[..., dict]:
    """Saves a label as a viewer does, with what it says of it."""

    def save(
        client: TestClient, name: str, file: Path, tag: str = "final", status: int = 200, **params: Any
    ) -> dict[str, Any]:
        with file.open("rb") as opened:
            answer = client.put(
                f"/datastore/label?image={name}&tag={tag}",
                files={"label": (file.name, opened)},
                data={"params": json.dumps(params)},
            )
        assert answer.status_code == status, answer.text
        return answer.json()

    return save


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a label with other voxels."""

    def edit_label(file: Path, edit: Callable[[np.ndarray], np.ndarray]) -> Path:
        label = nib.load(file)
        nib.save(nib.Nifti1Image(edit(np.array(label.dataobj)), label.affine), tmp_path / "edited.nii")
        return tmp_path / "edited.nii"

    return edit_label


@pytest.fixture
def labels(phantom: Path) -> Path:
    """Labels of the scans: ``phantom_001.nii`` of ``case_1``, and so on."""
    return phantom / "labels"


@pytest.fixture
def train() -> Callable[..., dict]:
    """Trains through REST and waits for the answer."""

    def call(http: TestClient, status: int = 200, **params: object) -> dict[str, Any]:
        answer = http.post("/train/dinomix?run_sync=true", json={"device": "cpu", "max_epochs": 1, **params})
        assert answer.status_code == status, answer.text
        return answer.json()

    return call
