"""A training leaves a bundle that needs no overlay."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow, verify_metadata, verify_net_in_out

from dinomix_monai.__main__ import promote
from dinomix_monai.metrics import read_scores
from dinomix_monai.models import read_class_names
from dinomix_monai.trained_bundle import TrainedBundle, check_inference_settings
from tests.toys import TOY

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"
# Other numbers than those of the sources, in every part that training and inference share.
OTHERS = {
    "spacing_mm": [9.0, 9.0, 10.0],
    "patch_size": [32, 32, 32],
    "intensity_window": [-160, 300],
    "network_def#num_convs": [1, 1, 1, 1],
    "validate#inferer#overlap": 0.5,
}


@pytest.fixture
def trained(run: Callable, tmp_path: Path) -> Path:
    """The folder of a training, moved away from where it was."""
    run("train", "ablation/pic", epochs=1, output_dir=str(tmp_path / "first"), **OTHERS)
    return shutil.move(tmp_path / "first", tmp_path / "moved")


def infer(scan: Path, output: Path, *configs: Path, **settings: Any) -> np.ndarray:
    given = {"dataset_dir": str(scan), "output_dir": str(output), "device": "cpu", "amp": False, **settings}
    workflow = ConfigWorkflow(
        [*map(str, configs)], workflow_type="infer", logging_file=False, run_id="inferring", **given
    )
    workflow.initialize()
    workflow.run()
    return np.asarray(nib.load(next(output.glob("*_seg.nii.gz"))).dataobj)


def test_its_inference_is_that_of_the_training(trained: Path, phantom: Path, tmp_path: Path) -> None:
    scan = next((phantom / "images").glob("*_006.nii*"))
    found = infer(scan, tmp_path / "a", trained / "configs" / "inference.json")
    given = {name.replace("validate#inferer", "inferer#inferer"): value for name, value in OTHERS.items()}
    model = {"model_file": str(trained / "models" / "model.pt"), "network_def#n_filters": TOY["network_def#n_filters"]}
    expected = infer(scan, tmp_path / "b", CONFIGS / "inference.json", **given, **model)
    np.testing.assert_array_equal(found, expected)
    assert len(np.unique(found)) > 1


def test_its_metadata_tells_what_the_network_takes_and_gives(trained: Path) -> None:
    metadata = trained / "configs" / "metadata.json"
    verify_metadata(str(metadata), filepath=str(trained / "docs" / "meta_schema.json"))
    paths = {"config_file": str(trained / "configs" / "inference.json"), "meta_file": str(metadata)}
    verify_net_in_out("network_def", device="cpu", **paths)
    content = json.loads(metadata.read_text())
    image, pred = content["network_data_format"]["inputs"]["image"], content["network_data_format"]["outputs"]["pred"]
    assert (image["spatial_shape"], pred["num_channels"]) == ([32, 32, 32], 14)
    assert "intensities from -160 to 300" in content["image_classes"]
    scores = read_scores(trained, "sound")
    assert content["eval_metrics"]["validation_mean_dice"] == pytest.approx(np.nanmean(scores.mean()[0]), abs=1e-4)
    assert str(CONFIGS.parent) not in metadata.read_text()


def test_its_card_tells_data_settings_and_scores(trained: Path) -> None:
    card = (trained / "docs" / "README.md").read_text()
    for said in (
        *("2 training, 2 unlabeled, 1 validation, 2 test.", "9 x 9 x 10 mm", "32 x 32 x 32 voxels"),
        *("3 steps, seed 0", "Frozen teacher: none", "not stated by whoever has trained the model", "6 liver"),
        read_scores(trained, "sound").table(),
    ):
        assert said in card
    assert (trained / "LICENSE").is_file()


def test_it_is_evaluated_without_an_overlay(run: Callable, trained: Path, tmp_path: Path) -> None:
    configs = [str(trained / "configs" / f"{name}.json") for name in ("train", "evaluate")]
    workflow = ConfigWorkflow(configs, workflow_type="train", logging_file=False, run_id="evaluating")
    workflow.initialize()
    workflow.run()
    model = {"model_file": str(trained / "models" / "model.pt"), "report_dir": str(tmp_path / "report")}
    run("train", "ablation/pic", "evaluate", run_id="evaluating", **OTHERS, **model)
    found, expected = (read_scores(folder, "sound") for folder in (trained / "evaluation", tmp_path / "report"))
    np.testing.assert_array_equal(found.mean(), expected.mean())


def test_a_model_is_not_asked_at_another_voxel_size_than_it_was_trained_at(trained: Path, phantom: Path) -> None:
    model = {"model_file": str(trained / "models" / "model.pt"), "network_def#n_filters": TOY["network_def#n_filters"]}
    shared = {"network_def#num_convs": [1, 1, 1, 1], "spacing_mm": [9.0, 9.0, 10.0]}
    for wrong, message in (
        ({"spacing_mm": [8.0, 8.0, 10.0]}, r"spacing_mm must be that of the model's training, \[9.0, 9.0, 10.0\]"),
        ({"patch_size": [32, 32, 16]}, r"patch_size must be that of the model's training, \[32, 32, 32\]"),
    ):
        with pytest.raises(RuntimeError) as error:
            infer(phantom / "images", trained / "x", CONFIGS / "inference.json", **{**model, **shared, **wrong})
        with pytest.raises(ValueError, match=message):
            raise error.value.__cause__
    check_inference_settings(trained / "models" / "model.pt", [9, 9, 10], [32, 32, 32])
    # A model whose training is not known is taken as it is.
    check_inference_settings(trained / "model.pt", [1, 1, 1], [8, 8, 8])


def test_a_model_of_another_name_is_found(run: Callable, phantom: Path, tmp_path: Path) -> None:
    for number, file in enumerate((tmp_path / "out" / "nets" / "a.pt", tmp_path / "elsewhere" / "b.pt")):
        given = {"output_dir": str(tmp_path / "out"), "model_file": str(file)}
        run("train", "ablation/pic", epochs=1, **given)
        scan = next((phantom / "images").glob("*_006.nii*"))
        infer(scan, tmp_path / f"labels_{number}", tmp_path / "out" / "configs" / "inference.json")


def test_in_the_bundle_itself_no_config_is_replaced(run: Callable, tmp_path: Path) -> None:
    root = tmp_path / "bundle"
    shutil.copytree(CONFIGS.parent, root, ignore=shutil.ignore_patterns("data", "models", "logs", "report"))
    before = {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}
    run("train", "ablation/pic", epochs=1, bundle_root=str(root), output_dir=str(root), **OTHERS)
    assert (root / "models" / "model.pt").is_file()
    assert {file: file.read_bytes() for file in before} == before


def test_a_run_that_is_resumed_leaves_the_configuration_that_it_began_with(run: Callable, tmp_path: Path) -> None:
    run("train", "ablation/pic", epochs=1, run_id="training")
    written = (tmp_path / "configs" / "train.json").read_text()
    run("train", "ablation/pic", "resume", epochs=2, run_id="training")
    assert (tmp_path / "configs" / "train.json").read_text() == written
    assert "6 steps" in (tmp_path / "docs" / "README.md").read_text()


def test_configs_are_there_with_the_first_model_and_scores_at_the_end(tmp_path: Path) -> None:
    config = json.loads((CONFIGS / "train.json").read_text())
    weights = tmp_path / "weights of mine.pth"
    weights.touch()
    teacher = f"vit, layer 8, weights from {weights}, fingerprint 0123"
    facts = {"cases": "2 training", "teacher": teacher, "seed": 0, "steps": 3}
    given = (tmp_path, CONFIGS.parent, [2, 2, 2], [16, 16, 16], ["background", "heart"], facts)
    bundle = TrainedBundle(*given, data_license="CC BY 4.0", config=config)
    bundle.write()
    metadata = json.loads((tmp_path / "configs" / "metadata.json").read_text())
    assert (metadata["eval_metrics"], metadata["data_source"]) == ({}, "CC BY 4.0")
    with pytest.raises(FileNotFoundError, match=r"metrics\.csv"):
        bundle.finish()
    card = (tmp_path / "docs" / "README.md").read_text()
    assert "There are no scores: the training has not ended" in card
    # Where the files of the training lie is nobody's business.
    assert "vit, layer 8, weights from weights of mine.pth, fingerprint 0123" in card
    assert str(tmp_path) not in card + (tmp_path / "configs" / "metadata.json").read_text()
    with pytest.raises(ValueError, match="config must be given"):
        TrainedBundle(*given)


def test_a_transform_of_intensities_of_ones_own_takes_the_place_of_the_window(run: Callable, tmp_path: Path) -> None:
    own = {"_target_": "ScaleIntensityd", "keys": "image"}
    run("train", "ablation/pic", epochs=1, scale_intensity=own)
    written = json.loads((tmp_path / "configs" / "inference.json").read_text())
    assert written["scale_intensity"] == own
    assert "intensity_window" not in written


@pytest.fixture
def federation(tmp_path: Path) -> Callable[..., Path]:
    """Writes the global model of a federation with the classes and the network of a bundle, but for what is given."""

    def write(bundle: Path, change: Callable[[dict], object] = lambda weights: None, **about: Any) -> Path:
        weights = torch.load(bundle / "models" / "model.pt", weights_only=True)
        weights = {name: -value for name, value in weights.items()}
        change(weights)
        names = read_class_names(bundle / "models" / "model.pt")
        meta = {"class_names": names, "num_channels": 1, "teacher": "none", "rounds": 4, "next_round": 3, **about}
        (tmp_path / "ws" / "app_server").mkdir(parents=True, exist_ok=True)
        torch.save({"model": weights, "meta_props": meta}, tmp_path / "ws" / "app_server" / "FL_global_model.pt")
        return tmp_path / "ws"

    return write


def test_the_model_of_a_federation_becomes_that_of_the_bundle(
    federation: Callable, trained: Path, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    scan = next((phantom / "images").glob("*_006.nii*"))
    before = infer(scan, tmp_path / "a", trained / "configs" / "inference.json")
    weights = torch.load(trained / "models" / "model.pt", weights_only=True)
    settings = {"spacing_mm": [9.0, 9.0, 10.0], "epochs": 3}
    promote(str(federation(trained, settings=settings)), bundle_root=str(trained))
    assert "after 3 of 4 rounds" in capsys.readouterr().out
    found = torch.load(trained / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(found[name], -value) for name, value in weights.items())
    assert (infer(scan, tmp_path / "b", trained / "configs" / "inference.json") != before).any()
    # What the training scored was another model.
    metadata, card = (trained / name for name in ("configs/metadata.json", "docs/README.md"))
    assert json.loads(metadata.read_text())["eval_metrics"] == {}
    assert "the weights are the global model of a federation after 3 of 4 rounds" in card.read_text()
    assert "mean" not in card.read_text().partition("## Performance")[2].partition("## Commands")[0]
    assert "## Limitations" in card.read_text()
    verify_metadata(str(metadata), filepath=str(trained / "docs" / "meta_schema.json"))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "other classes": (
        {"class_names": ["background", "heart"]},
        r"The bundle must have the classes of the weights, background, heart, got .* with background, .*liver",
    ),
    "another voxel size": (
        {"settings": {"spacing_mm": [2.0, 2.0, 2.0]}},
        r"The bundle must have the spacing_mm that the weights were trained with, \[2.0, 2.0, 2.0\], got .* with ",
    ),
    "another window": (
        {"settings": {"intensity_window": None}},
        r"The bundle must have the intensity_window that the weights were trained with, None, got .* \[-160, 240\]",
    ),
    "another network": (
        {"change": lambda weights: weights.pop(next(iter(weights)))},
        r"checkpoint must hold the weights of network_def in .*train\.json, got .*has the shape None",
    ),
    "more channels": ({"num_channels": 2}, r"checkpoint must hold the weights of network_def in .* of which stem"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_federation_that_does_not_fit_the_bundle_is_refused(
    name: str, federation: Callable, trained_bundle: Path
) -> None:
    given, message = REFUSED[name]
    before = {file: file.read_bytes() for file in trained_bundle.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=message):
        promote(str(federation(trained_bundle, **given)), bundle_root=str(trained_bundle))
    assert {file: file.read_bytes() for file in before} == before
