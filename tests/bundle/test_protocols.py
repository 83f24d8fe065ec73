from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from dinomix_monai.data import prepare_dataset, read_protocol

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"
OVERLAYS = {name: json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("synapse", "amos")}
# What the overlays set is given once more where the fixture's toy settings would come after it.
SETTINGS = {
    **{name: OVERLAYS["synapse"][name] for name in ("spacing_mm", "distiller#modules", "ema_teacher#decay")},
    **{"steps_per_epoch": 2, "patch_size": [32, 32, 16], "network_def#n_filters": 2},
}

pytestmark = pytest.mark.parametrize("overlay", OVERLAYS)


@pytest.fixture
def prepared(tmp_path: Path, overlay: str) -> Path:
    """Four scans of different oblique grids, prepared as the protocol says but on 40 x 40 x 20 voxels."""
    protocol = read_protocol(overlay)
    split = {"labeled": {"50": ["a"]}, "train": ["a", "b"], "validation": ["c"], "test": ["d"], "default_labeled": 50}
    small = {
        **{"title": "T", "description": "D", "class_names": protocol.class_names},
        **{"grid": [40, 40, 20], "window": protocol.window},
        "files": [{"image": "{id}.nii", "label": "{id}_label.nii"}],
        "protocols": [{"name": "small", "source": "here", **split}],
    }
    (tmp_path / "small.json").write_text(json.dumps(small))
    random = np.random.default_rng(0)
    for number, case in enumerate("abcd"):
        cos, sin = np.cos(0.1 * number), np.sin(0.1 * number)
        affine = np.eye(4)
        affine[:3, :3] = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]) @ np.diag([-0.9, 0.8 + number / 10, 3.0])
        shape = (50 + number, 48, 30)
        volumes = {"": random.normal(60, 100, shape), "_label": random.integers(0, len(protocol.class_names), shape)}
        for postfix, volume in volumes.items():
            nib.save(nib.Nifti1Image(volume.astype(np.int16), affine), tmp_path / f"{case}{postfix}.nii")
    return prepare_dataset(read_protocol(tmp_path / "small.json"), tmp_path, tmp_path / "out", workers=1).parent


def test_volumes_reach_the_network_voxel_by_voxel(workflow, overlay: str, prepared: Path) -> None:
    # Turned to RAS by flips alone: neither interpolated nor scaled anew.
    for configs, section, case in [((), "validate", "c"), ((), "report", "c"), (("evaluate",), "validate", "d")]:
        parser = workflow("train", overlay, *configs, dataset_dir=str(prepared), **SETTINGS).parser
        image = parser.get_parsed_content(f"{section}#dataset")[0]["image"][0].numpy()
        assert image.shape == (40, 40, 20)
        assert (image == voxels(prepared / f"images/{case}.nii.gz")).all()
    parser = workflow("train", overlay, dataset_dir=str(prepared), **SETTINGS).parser
    label = parser.get_parsed_content("validate#dataset")[0]["label"][0].numpy()
    assert (label == voxels(prepared / "labels/c.nii.gz")).all()


def voxels(path: Path) -> np.ndarray:
    return np.asanyarray(nib.as_closest_canonical(nib.load(path)).dataobj)


def test_a_labeled_and_an_unlabeled_batch_pass_through_the_network(workflow, overlay: str, prepared: Path) -> None:
    built = workflow("train", overlay, dataset_dir=str(prepared), **SETTINGS)
    built.initialize()
    trainer = built.parser.get_parsed_content("train#trainer")
    classes = len(read_protocol(overlay).class_names)
    for loader in (trainer.data_loader, trainer.unlabeled_data_loader):
        images = next(iter(loader))["image"]
        assert images.shape == (2, 1, 32, 32, 16)
        logits = trainer.network(images.as_tensor())
        assert logits.shape == (2, classes, 32, 32, 16)
        assert torch.isfinite(logits).all()
    optimizer, learned = trainer.optimizer, [*trainer.network.parameters(), *trainer.distiller.parameters()]
    assert type(optimizer) is torch.optim.SGD
    assert [len(group["params"]) for group in optimizer.param_groups] == [len(learned)]


def read_with_train(overlay: str) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json") for name in ("train", overlay)])
    return parser


def test_the_student_is_the_v_net_of_the_literature(overlay: str) -> None:
    parser = read_with_train(overlay)
    parser["num_classes"] = classes = len(read_protocol(overlay).class_names)
    network = parser.get_parsed_content("network_def")
    # DHC's has 37.8 million with 32 filters and 14 classes; a class more is 33 parameters more.
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(37.8e6, rel=2e-3)
    assert network(torch.zeros(2, 1, 32, 32, 16)).shape == (2, classes, 32, 32, 16)
    kinds = [type(module).__name__ for module in network.modules()]
    assert {"BatchNorm3d", "ReLU", "Dropout3d"} <= set(kinds)
    assert network.dropout.p == 0.5


@pytest.mark.parametrize(
    ("overlap", "size", "windows"),
    # A volume longer by one step has one more window along each axis.
    [(None, (160, 160, 80), 8), (None, (192, 192, 96), 27), ([0.875, 0.875, 0.9375], (160, 160, 80), 45)],
    ids=["SKCDF", "SKCDF, one step more", "GenericSSL"],
)
def test_a_volume_is_seen_in_as_many_windows_as_published(
    overlay: str, overlap: list | None, size: tuple[int, ...], windows: int
) -> None:
    parser = read_with_train(overlay)
    if overlap is not None:
        parser["validate#inferer#overlap"] = overlap
    seen = []
    inferer = parser.get_parsed_content("validate#inferer")
    inferer(torch.zeros(1, 1, *size), lambda patch: seen.append(len(patch)) or patch)
    assert sum(seen) == windows
    assert tuple(inferer.roi_size) == (128, 128, 64)
    assert inferer.mode == "constant"


def test_a_run_is_as_long_as_that_of_skcdf(overlay: str) -> None:
    content = OVERLAYS[overlay]
    assert content["epochs"] * content["steps_per_epoch"] == {"synapse": 12_000, "amos": 154_500}[overlay]
    assert content["epochs"] % content["val_interval"] == 0  # the last model is scored, too


def test_the_overlays_differ_in_length_alone(overlay: str) -> None:
    length = {"_desc_", "epochs", "steps_per_epoch", "val_interval"}
    settings = [{name: value for name, value in content.items() if name not in length} for content in OVERLAYS.values()]
    assert settings[0] == settings[1]


def test_the_sound_rule_scores_on_the_scans_where_they_are_given(run, overlay: str, prepared: Path) -> None:
    settings = {**SETTINGS, "dataset_dir": str(prepared), "report#rules": ["sound", "published"], "epochs": 1}
    raw = {
        "report#originals#raw_dir": str(prepared.parent),
        "report#originals#protocol": str(prepared.parent / "small.json"),
    }
    for evaluation in (run("train", overlay, **settings, **raw), run("train", overlay, "evaluate", **settings, **raw)):
        section = "validate" if "split" in evaluation.parser.config else "report"
        handler = evaluation.parser.get_parsed_content(f"{section}#handlers")[-1]
        assert [scores.grid for scores in handler.scores] == ["scan", "file"]
        assert "those of the original scans" in (handler.output_dir / "report/index.html").read_text()
