"""A training on other scans than the phantom's plans by itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

from dinomix_monai.bundle import Bundle
from tests.toys import as_anybodys

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"
SHORT = {
    "epochs": 1,
    "steps_per_epoch": 2,
    "val_interval": 1,
    "network_def#n_filters": 4,
    "device": "cpu",
    "amp": False,
}


@pytest.fixture
def own(edited_phantom: Callable) -> Path:
    return as_anybodys(edited_phantom())


def test_it_trains_by_its_plan_and_leaves_a_bundle_that_needs_none(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    trained = Bundle(CONFIGS.parent).workflow("train", "ablation/pic", run_id="training", dataset_dir=str(own), **SHORT)
    trained.initialize()
    trained.run()
    printed = capsys.readouterr().out
    assert printed.index("spacing_mm: [8.0, 8.0, 10.0]") < printed.index("A MONAI bundle of this model")
    # What is given is not part of the plan.
    assert "flip_prob" in printed
    assert "epochs:" not in printed
    out = tmp_path / "data_model"
    inference, training = (
        json.loads((out / "configs" / name).read_text()) for name in ("inference.json", "train.json")
    )
    for config in (inference, training):
        assert (config["spacing_mm"], config["patch_size"]) == ([8.0, 8.0, 10.0], [32, 32, 16])
        assert config["network_def"]["strides"] == [[2, 2, 2], [2, 2, 2], [2, 2, 1]]
        assert config["intensity_window"][0] < config["intensity_window"][1]
    assert training["epochs"] == 1
    # Whatever becomes of the scans, the model is asked as it was trained.
    evaluated = ConfigWorkflow(
        [str(out / "configs" / name) for name in ("train.json", "evaluate.json")],
        workflow_type="train",
        logging_file=False,
        run_id="evaluating",
        **{"plan#memory_gb": 0.1},
    )
    evaluated.initialize()
    evaluated.run()
    assert (out / "evaluation" / "report" / "index.html").is_file()
    # A training that goes on from it has its settings, and makes a bundle again.
    tuned = ConfigWorkflow(
        [str(out / "configs" / name) for name in ("train.json", "finetune.json")],
        workflow_type="train",
        logging_file=False,
        run_id="training",
        output_dir=str(tmp_path / "tuned"),
    )
    tuned.initialize()
    tuned.run()
    again = json.loads((tmp_path / "tuned" / "configs" / "inference.json").read_text())
    assert {**again, "model_file": None} == {**inference, "model_file": None}


@pytest.mark.parametrize("overlay", ["acdc", "synapse", "amos"])
def test_what_an_overlay_of_a_protocol_does_not_say_is_as_on_the_phantom(own: Path, overlay: str) -> None:
    parser = Bundle(CONFIGS.parent).parser("train", overlay, dataset_dir=str(own))
    for name in ("flip_prob", "network_def#stem_stride"):
        assert parser.get(name) is None or "$@plan" in str(parser.get(name)) or overlay == "acdc"
    assert parser.get_parsed_content("flip_prob") == [0.0, 0.0, 0.0]
    assert not parser.get_parsed_content("plan").is_planned
