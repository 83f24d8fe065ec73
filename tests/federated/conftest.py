from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from dinomix_monai.bundle import Bundle
from dinomix_monai.data import split_dataset
from dinomix_monai.federated.protocol import RunPlan, bundle_network
from dinomix_monai.federated.site import Site, SiteSettings
from tests.toys import TOY, make_toy_phantom

SETTINGS = {
    **TOY,
    "steps_per_epoch": 2,
    "warm_up": 0.0,
    "ramp_up": 0.0,
    "pseudo_labeler#threshold": 0.0,
    "pseudo_labeler#floor": 0.0,
    "distillation_weight": 0,
    "val_interval": 1,
}
VOXELS = tuple(float(1000 - 60 * value) for value in range(14))


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_toy_phantom(tmp_path_factory.mktemp("phantom"), cases=(2, 4, 2, 2))
    split_dataset(folder, 3, unlabeled_sites=1)
    return folder


@pytest.fixture(scope="session")
def token_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens")


@pytest.fixture
def make_plan() -> Callable[..., RunPlan]:
    def make(settings: dict | None = None, **changes: object) -> RunPlan:
        defaults = {"rounds": 2, "epochs_per_round": 1, "labeled_voxels": VOXELS, "patch_voxels": VOXELS}
        return RunPlan(settings={**SETTINGS, **(settings or {})}, **{**defaults, **changes})

    return make


@pytest.fixture
def make_site(phantom: Path, token_dir: Path, tmp_path: Path, make_plan: Callable) -> Callable[..., Site]:
    """A site with the first share of labels, or with unlabeled cases alone."""

    def make(folder: str = "site", labels: bool = True, plan: RunPlan | None = None, **overrides: object) -> Site:
        settings = {
            "dataset_dir": str(phantom),
            "datalist#file": f"site-{1 if labels else 3}-of-3-1-unlabeled.json",
            "token_cache#folder": str(token_dir),
            "teacher_weights": "none",
            "device": "cpu",
            "amp": False,
            **overrides,
        }
        return Site(SiteSettings("site-1", tmp_path / folder, Bundle.find(), settings), plan or make_plan())

    return make


@pytest.fixture
def weights() -> dict:
    """The global model of the server."""
    return bundle_network(14, settings=SETTINGS, seed=7).state_dict()
