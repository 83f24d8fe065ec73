from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from dinomix_monai import __main__ as commands
from dinomix_monai.label import prepare_app_folder
from dinomix_monai.models import write_class_names

BUNDLE = Path(__file__).parents[2] / "bundle"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of two classes as a training leaves it, with the state of the run."""
    path = tmp_path / "run" / "models" / "model.pt"
    write_class_names(path, ["background", "left", "right"])
    torch.save({"weight": torch.ones(1)}, path)
    return path


def test_an_app_begins_with_model_and_classes_of_a_training(model: Path, tmp_path: Path) -> None:
    folder = prepare_app_folder(tmp_path / "app", BUNDLE, model)
    assert folder.class_names == ["background", "left", "right"]
    assert torch.load(folder.model_file, weights_only=True) == {"weight": torch.ones(1)}
    output = json.loads((folder.root / "configs" / "metadata.json").read_text())["network_data_format"]["outputs"]
    assert output["pred"]["channel_def"] == {"0": "background", "1": "left", "2": "right"}
    assert output["pred"]["num_channels"] == 3


def test_an_app_that_is_there_keeps_its_model_classes_and_settings(model: Path, tmp_path: Path) -> None:
    first = prepare_app_folder(tmp_path / "app", BUNDLE, None, ["tumor"], {"spacing_mm": [1, 1, 1]})
    torch.save({"weight": torch.full((1,), 7.0)}, first.model_file)
    (first.root / "configs" / "train.json").write_text("{}")
    again = prepare_app_folder(tmp_path / "app", BUNDLE, model, None, {"spacing_mm": [2, 2, 2]})
    assert again.class_names == ["background", "tumor"]
    assert torch.load(again.model_file, weights_only=True) == {"weight": torch.full((1,), 7.0)}
    assert again.bundle.parser("inference").get_parsed_content("spacing_mm") == [1, 1, 1]
    assert (again.root / "configs" / "train.json").read_bytes() == (BUNDLE / "configs" / "train.json").read_bytes()


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("none", ("none", 0.0)), ("auto", ("auto", 0.05)), ("dino.pth", (str(Path("dino.pth").absolute()), 0.05))],
)
def test_features_are_distilled_only_from_a_teacher_with_weights(tmp_path: Path, weights: str, expected) -> None:
    parser = prepare_app_folder(tmp_path / "app", BUNDLE, teacher_weights=weights).bundle.parser("train")
    found = tuple(parser.get_parsed_content(name) for name in ("teacher_weights", "distillation_weight"))
    assert found == expected


def test_an_overlay_of_the_bundle_can_be_the_settings(tmp_path: Path) -> None:
    overlay = json.loads((BUNDLE / "configs" / "acdc.json").read_text())
    folder = prepare_app_folder(tmp_path / "app", BUNDLE, labels=["ventricle"], settings=overlay)
    network: nn.Module = folder.bundle.parser("inference").get_parsed_content("network_def")
    assert network.stem[0].stride == (2, 2, 1)


def test_what_is_missing_or_does_not_fit_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"bundle must be the folder of the bundle, got .*/nowhere, which has"):
        prepare_app_folder(tmp_path / "app", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"model must be the weights of a trained model, got none\.pt"):
        prepare_app_folder(tmp_path / "app", BUNDLE, "none.pt")
    with pytest.raises(ValueError, match="labels must be those of the model, left, right, got tumor"):
        prepare_app_folder(tmp_path / "app", BUNDLE, model, ["tumor"])
    model.write_text("no tensors")
    with pytest.raises(ValueError, match=r"model must be the weights of a trained model, got .*, which is damaged"):
        prepare_app_folder(tmp_path / "app", BUNDLE, model)
    assert not (tmp_path / "app").exists()


def test_in_any_folder_the_app_is_made_of_the_bundle_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "studies").mkdir()
    served: list = []
    monkeypatch.setattr("dinomix_monai.label.serve", lambda folder, *_: served.append(folder))
    commands.label("studies", labels="liver, spleen", port=0)
    (folder,) = served
    assert folder.root == tmp_path / "label_app"
    assert folder.class_names == ["background", "liver", "spleen"]
