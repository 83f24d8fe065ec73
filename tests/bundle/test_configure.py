"""An overlay that ``configure`` writes, from the scans to a label map."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
from monai.bundle import ConfigParser

import dinomix_monai.__main__ as commands
from dinomix_monai.bundle import Bundle
from dinomix_monai.configuring import configure_training

CONFIGS = Path(__file__).parents[2] / "bundle" / "configs"
# What a toy is made small by, and no plan decides.
SMALL = {"network_def#n_filters": 4, "device": "cpu", "amp": False}


@pytest.fixture
def parser(phantom: Path) -> Callable[..., ConfigParser]:
    def make(**settings: Any) -> ConfigParser:
        given = {"dataset_dir": str(phantom), "distillation_weight": 0.0, **SMALL, **settings}
        return Bundle(CONFIGS.parent).parser("train", **given)

    return make


def test_the_overlay_trains_and_segments(parser: Callable, phantom: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "plan.json"
    text = configure_training(parser(), overlay)
    written = json.loads(overlay.read_text())
    assert written["spacing_mm"] == [8.0, 8.0, 10.0]
    assert written["patch_size"] == [32, 32, 16]
    assert written["epochs"] * 25 == 2000
    assert f"{phantom}" in text
    # Each setting has a reason, and the text has both.
    reasons = written.pop("_desc_")
    assert reasons.keys() - {"plan"} == written.keys()
    assert all(name in text and reasons[name] in text for name in written)
    # No plan is lost on the way: what is printed is what monai.bundle takes.
    command = shlex.split(text.splitlines()[-1])
    assert command[command.index("--config_file") + 1] == f"['bundle/configs/train.json','{overlay}']"
    short = {"epochs": 2, "steps_per_epoch": 2, "val_interval": 1, "distillation_weight": 0.0}
    bundle = Bundle(CONFIGS.parent)
    data = {"dataset_dir": str(phantom), "output_dir": str(tmp_path / "out")}
    trained = bundle.workflow("train", overlay, run_id="training", **SMALL, **short, **data)
    trained.initialize()
    trained.run()
    assert trained.parser.get_parsed_content("train#dataset")[0][0]["image"].shape[1:] == (32, 32, 16)
    scan = next((phantom / "images").glob("*_006.nii*"))
    segmented = bundle.workflow(
        *("inference", overlay),
        workflow_type="infer",
        run_id="inferring",
        **SMALL,
        model_file=str(tmp_path / "out" / "models" / "model.pt"),
        dataset_dir=str(scan),
        output_dir=str(tmp_path / "labels"),
    )
    segmented.initialize()
    segmented.run()
    assert nib.load(next((tmp_path / "labels").glob("*_seg.nii.gz"))).shape == nib.load(scan).shape


def test_a_plan_for_a_gpu_goes_behind_inference_as_well(parser: Callable, tmp_path: Path) -> None:
    overlay = tmp_path / "plan.json"
    configure_training(parser(device="cuda"), overlay, memory_gb=24)
    written = json.loads(overlay.read_text())
    # The network works at full resolution, is taught one level deeper, and its EMA teacher remembers a long run.
    assert (written["network_def#stem_stride"], written["distiller#modules"]) == ([1, 1, 1], ["decoder.2"])
    assert written["ema_teacher#decay"] == 0.99
    trained, asked = (
        Bundle(CONFIGS.parent).parser(name, overlay, num_classes=14, num_channels=1).get_parsed_content("network_def")
        for name in ("train", "inference")
    )
    assert [value.shape for value in asked.state_dict().values()] == [
        value.shape for value in trained.state_dict().values()
    ]


def test_what_is_given_wins_and_what_depends_on_it_follows(parser: Callable, tmp_path: Path) -> None:
    given = {"spacing_mm": [16.0, 16.0, 20.0], "epochs": 3}
    text = configure_training(parser(**given), tmp_path / "plan.json", given=given)
    written = json.loads((tmp_path / "plan.json").read_text())
    assert written["patch_size"] == [16, 16, 8]
    assert not given.keys() & (written.keys() | written["_desc_"].keys())
    assert text.endswith("--spacing_mm '[16.0, 16.0, 20.0]' --epochs 3")


def test_a_time_is_fitted_by_timed_steps(parser: Callable, tmp_path: Path) -> None:
    epochs = {}
    for hours in (0.5, 2.5):
        file = tmp_path / f"{hours}.json"
        configure_training(parser(), file, hours=hours)
        written = json.loads(file.read_text())
        epochs[hours] = written["epochs"]
        assert written["val_interval"] == written["epochs"] // 8
        assert f"What fits into {hours} hours" in written["_desc_"]["epochs"]
    assert epochs[2.5] > 2 * epochs[0.5]
    with pytest.raises(ValueError, match=r"The time must be enough for 9 epochs, at least .* here, got 0 s"):
        configure_training(parser(), tmp_path / "short.json", hours=1e-5)
    assert not (tmp_path / "short.json").exists()


def test_nothing_is_replaced_unasked(parser: Callable, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text("{}")
    with pytest.raises(FileExistsError, match=r"out_file must not be there yet.*--overwrite True"):
        configure_training(parser(), file)
    configure_training(parser(), file, overwrite=True)
    assert (tmp_path / "plan.previous.json").read_text() == "{}"
    assert "spacing_mm" in json.loads(file.read_text())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"modality": "US"},
            "modality must be one of CT, MR, PET, or one for each channel with commas between, got US",
        ),
        ({"hours": 0}, "hours must be above 0, got 0"),
        ({"memory_gb": 1}, r"memory_gb must be enough for a training, at least 3, got 1\."),
    ],
)
def test_options_that_cannot_be_are_refused(parser: Callable, tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configure_training(parser(), tmp_path / "plan.json", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_modality_may_be_said(parser: Callable, tmp_path: Path) -> None:
    configure_training(parser(), tmp_path / "plan.json", modality="mr")
    assert json.loads((tmp_path / "plan.json").read_text())["intensity_window"] is None


def test_the_command_train_plans_and_trains(phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    short = {"epochs": 1, "steps_per_epoch": 2, "distillation_weight": 0.0}
    out = tmp_path / "out"
    commands.train(str(phantom), str(out), config_file=str(CONFIGS / "train.json"), **SMALL, **short)
    printed = capsys.readouterr().out
    plan = json.loads((out / "plan.json").read_text())
    assert plan["_desc_"]["spacing_mm"] in printed
    assert "epochs" not in plan
    trained = json.loads((out / "configs" / "inference.json").read_text())
    assert (trained["spacing_mm"], trained["patch_size"]) == (plan["spacing_mm"], plan["patch_size"])
    assert json.loads((out / "run.json").read_text())["steps"] == 2
    assert f"A MONAI bundle of this model is in {out}" in printed
