from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

import pytest
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

from dinomix_monai.bundle import Bundle
from tests.toys import TOY, make_toy_phantom

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"

TOY_RUN = {
    **TOY,
    "epochs": 2,
    "steps_per_epoch": 3,
    "val_interval": 1,
    "warm_up": 0.34,
    "ramp_up": 0.0,
    "distiller#interval": 2,
    "teacher#model_name": "test_vit",
    "teacher_weights": "none",
    "device": "cpu",
    "amp": False,
}
# For tests of the training itself: the report takes as long as all steps of a toy.
WITHOUT_REPORT = {"run": ["$@train#trainer.run()"]}


@pytest.fixture(autouse=True)
def _trainings_render_nothing(pictures_are_empty: None) -> None:
    """The pictures themselves are tested in ``tests/report``."""


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_phantom(tmp_path_factory.mktemp("phantom"), cases=(2, 2, 1, 2))


@pytest.fixture(scope="session")
def token_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tokens are computed once for all tests."""
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def edited_phantom(phantom: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copies the phantom, with other entries in its ``dataset.json``."""

    def edit(**entries: object) -> Path:
        folder = tmp_path / "data"
        shutil.copytree(phantom, folder)
        datalist = json.loads((folder / "dataset.json").read_text())
        (folder / "dataset.json").write_text(json.dumps({**datalist, **entries}))
        return folder

    return edit


@pytest.fixture
def workflow(phantom: Path, token_dir: Path, tmp_path: Path) -> Callable[..., ConfigWorkflow]:
    """Builds a workflow from configs of the bundle, with outputs in a temporary folder."""

    def build(*configs: str, run_id: str = "run", kind: str = "train", **overrides: object) -> ConfigWorkflow:
        defaults = {
            **TOY_RUN,
            "dataset_dir": str(phantom),
            "output_dir": str(tmp_path),
            "token_cache#folder": str(token_dir),
        }
        if kind == "infer":
            defaults = {**TOY, "device": "cpu", "amp": False, "output_dir": str(tmp_path / "output")}
        settings = {"run_id": run_id, **defaults, **overrides}
        return Bundle(CONFIGS.parent).workflow(*configs, workflow_type=kind, **settings)

    return build


@pytest.fixture
def run(workflow: Callable[..., ConfigWorkflow]) -> Callable[..., ConfigWorkflow]:
    """Builds a workflow, initializes and runs it."""

    def build_and_run(*configs: str, **kwargs: object) -> ConfigWorkflow:
        built = workflow(*configs, **kwargs)
        built.initialize()
        built.run()
        return built

    return build_and_run


@pytest.fixture
def step(workflow: Callable) -> Callable[..., Callable[..., None]]:
    """Makes a function that takes the next training step of a config, with all of its parts at work."""

    def make(overlay: str, **settings: object) -> Callable[..., None]:
        overlays = () if overlay == "default" else (overlay,)
        built = workflow("train", *overlays, **{"distiller#interval": 1}, warm_up=0.0, **settings)
        built.initialize()
        trainer = built.parser.get_parsed_content("train#trainer")
        set_determinism(0)
        for name in ("train#dataloader", "train#unlabeled_dataloader", "mix"):
            part = built.parser.get_parsed_content(name)
            if part is not None:
                part.set_random_state(seed=0)
        trainer.unsupervised_weight, trainer.state.iteration = 1.0, 0
        batches: Iterator = iter(trainer.data_loader)

        def take(counter: AbstractContextManager | None = None) -> None:
            trainer.state.iteration += 1
            batch, unlabeled = next(batches), trainer.next_unlabeled()
            with counter or nullcontext(), patch.object(trainer, "next_unlabeled", return_value=unlabeled):
                trainer._iteration(trainer, batch)

        take()  # the first one makes what stays: states of the optimizer, donors
        return take

    return make


@pytest.fixture(scope="session")
def trained_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the training below, which is made once for all tests."""
    return tmp_path_factory.mktemp("trained")


@pytest.fixture
def trained_bundle(run: Callable[..., ConfigWorkflow], trained_dir: Path) -> Path:
    """The bundle of a training, not to be written to."""
    if not (trained_dir / "configs").is_dir():
        run("train", "ablation/pic", output_dir=str(trained_dir))
    return trained_dir
