"""Images of several channels, from the folder of scans to label maps."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

import dinomix_monai.__main__ as commands
from dinomix_monai import load_model
from dinomix_monai.data import make_datalist, open_datalist
from dinomix_monai.label import AppFolder, prepare_app_folder

CPU = {"device": "cpu", "amp": False}


@pytest.fixture(scope="module")
def scans(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantom as a raw data set of nnU-Net with two channels of MR, the second one stored the other way round."""
    root = tmp_path_factory.mktemp("two_channels")
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir()
    datalist = open_datalist(phantom)
    for number, (_, case) in enumerate(datalist.cases()):
        volume = nib.load(case["image"])
        values = np.asarray(volume.dataobj).clip(-160, 240)
        t1, t2 = (nib.Nifti1Image(one.astype(np.float32), volume.affine) for one in (values + 160, 3 * (240 - values)))
        nib.save(t1, root / "imagesTr" / f"mr_{number}_0000.nii.gz")
        turned = t2.as_reoriented(nib.orientations.axcodes2ornt("LAS"))
        nib.save(turned, root / "imagesTr" / f"mr_{number}_0001.nii.gz")
        if "label" in case:
            nib.save(nib.load(case["label"]), root / "labelsTr" / f"mr_{number}.nii.gz")
    (root / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "T2"}}))
    make_datalist(root, class_names=datalist.class_names[1:], validation=1, overwrite=True)
    return root


@pytest.fixture(scope="module")
def trained_dir_of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("of_two")


@pytest.fixture
def two(run: Callable, scans: Path, trained_dir_of_two: Path, tmp_path: Path) -> Path:
    """The bundle of a training on two channels with a teacher, which is made once."""
    if not (trained_dir_of_two / "configs").is_dir():
        settings = {"intensity_window": None, "token_cache#folder": str(tmp_path / "tokens")}
        run("train", dataset_dir=str(scans), output_dir=str(trained_dir_of_two), planned_for=None, **settings)
    return trained_dir_of_two


def test_a_training_leaves_a_bundle_for_its_channels(two: Path) -> None:
    inference = json.loads((two / "configs" / "inference.json").read_text())
    assert inference["num_channels"] == 2
    metadata = json.loads((two / "configs" / "metadata.json").read_text())
    image = metadata["network_data_format"]["inputs"]["image"]
    assert (image["num_channels"], image["channel_def"]) == (2, {"0": "T1", "1": "T2"})
    assert image["modality"] == "n/a"
    assert metadata["image_classes"].startswith("2 channels, a file for each, T1: each image")
    card = (two / "docs" / "README.md").read_text()
    assert "Channels of an image: T1, T2." in card
    assert "`NAME_0000.nii.gz` for T1, `NAME_0001.nii.gz` for T2" in card


def test_both_channels_are_seen(two: Path, scans: Path, tmp_path: Path, run: Callable) -> None:
    model = load_model(two, **CPU)
    first, second = (scans / "imagesTr" / f"mr_5_000{channel}.nii.gz" for channel in (0, 1))
    found = np.asarray(model.predict([first, second]).label.dataobj)
    np.testing.assert_array_equal(np.asarray(model.predict(second).label.dataobj), found)
    swapped = np.asarray(model.predict([second, first]).label.dataobj)
    assert (found != swapped[::-1]).any()
    written = list(model.predict_all(scans / "imagesTr", tmp_path))
    assert len(written) == 7
    np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "mr_5_0000_seg.nii.gz").dataobj), found)
    with pytest.raises(ValueError, match="must have 2 channels, a file for each, got 1 files"):
        model.predict([first])


def test_the_bundle_segments_and_scores(two: Path, scans: Path, run: Callable, tmp_path: Path) -> None:
    configs = [str(two / "configs" / name) for name in ("inference.json", "train.json", "evaluate.json")]
    for files, run_id, kind, data in (
        (configs[:1], "inferring", "infer", scans / "imagesTr"),
        (configs[1:], "evaluating", "train", scans),
    ):
        given = {**CPU, "dataset_dir": str(data), "output_dir": str(tmp_path), "teacher_weights": "none"}
        if run_id == "evaluating":
            given |= {"split": "validation", "model_file": str(two / "models" / "model.pt")}
        workflow = ConfigWorkflow(files, workflow_type=kind, logging_file=False, run_id=run_id, **given)
        workflow.initialize()
        workflow.run()
    assert len(list(tmp_path.glob("*_seg.nii.gz"))) == 7
    assert (tmp_path / "evaluation" / "metrics.csv").is_file()


def test_autolabel_writes_all_channels(two: Path, scans: Path, tmp_path: Path) -> None:
    commands.autolabel(str(two), str(scans), str(tmp_path / "new"), layout="nnunet", **CPU)
    about = json.loads((tmp_path / "new" / "dataset.json").read_text())
    assert about["channel_names"] == {"0": "T1", "1": "T2"}
    names = {file.name for file in (tmp_path / "new" / "imagesTr").iterdir()}
    labels = {file.name.removesuffix(".nii.gz") for file in (tmp_path / "new" / "labelsTr").iterdir()}
    assert names == {f"{name}_000{channel}.nii.gz" for name in labels for channel in (0, 1)}
    with pytest.raises(ValueError, match="layout must be nnunet for images of 2 channels"):
        commands.autolabel(str(two), str(scans), str(tmp_path / "other"), **CPU)


def test_monai_label_takes_no_bundle_of_several_channels(two: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must segment images of one channel, because MONAI Label has one file"):
        prepare_app_folder(tmp_path / "app", bundle=two)
    assert not AppFolder(tmp_path / "app").settings_file.is_file()


def test_lists_must_name_as_many_channels_as_there_are(scans: Path, tmp_path: Path) -> None:
    content = json.loads((scans / "dataset.json").read_text())

    def problem(**changes: object) -> str:
        (scans / "other.json").write_text(json.dumps({**content, **changes}))
        with pytest.raises(ValueError, match=r"other\.json|Each case") as caught:
            open_datalist(scans, file="other.json")
        return str(caught.value)

    names = problem(channel_names={"0": "T1", "1": "T2", "2": "FLAIR"})
    assert "got the names T1, T2, FLAIR and 2 for" in names
    single = [{**case, "image": case["image"][0]} for case in content["validation"]]
    assert "must have as many channels, got 2 of" in problem(validation=single)
    assert "without image" in problem(validation=[{"image": [1, 2], "label": "a.nii"}])
    del content["channel_names"]
    (scans / "other.json").write_text(json.dumps(content))
    assert open_datalist(scans, file="other.json").channel_names == ("channel 0", "channel 1")
