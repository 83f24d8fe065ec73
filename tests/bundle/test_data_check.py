from __future__ import annotations

import json

import pytest


@pytest.fixture
def broken(edited_phantom):
    """The phantom, of which a test image is that of a labeled case, and a validation image is missing."""
    folder = edited_phantom()
    listed = json.loads((folder / "dataset.json").read_text())
    labeled, test, validation = (folder / listed[name][0]["image"] for name in ("training", "test", "validation"))
    test.write_bytes(labeled.read_bytes())
    validation.unlink()
    return folder


def test_a_run_does_not_begin_on_data_with_errors_and_names_all_of_them(workflow, broken):
    # Before a plan goes by its scans.
    with pytest.raises(RuntimeError, match=r"plan|verify_dataset") as error:
        workflow("train", dataset_dir=str(broken)).initialize()
    table = str(error.value.__cause__)
    assert isinstance(error.value.__cause__, ValueError)
    assert "phantom_005.nii  does not exist" in table
    assert "phantom_006.nii  is, under `test`, the same volume as images/phantom_001.nii under `training`" in table


def test_the_check_can_be_switched_off(workflow, edited_phantom):
    folder = edited_phantom()
    listed = json.loads((folder / "dataset.json").read_text())
    (folder / listed["test"][0]["image"]).write_bytes((folder / listed["training"][0]["image"]).read_bytes())
    with pytest.raises(RuntimeError, match="verify_dataset"):
        workflow("train", dataset_dir=str(folder)).initialize()
    workflow("train", dataset_dir=str(folder), check_data=False).initialize()


def test_sound_data_pass_without_a_word(workflow, capsys):
    workflow("train").initialize()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        ({"patch_size": [48, 32, 16]}, "is 40 x 40 x 28 voxels when resampled, less than a patch of 48 x 32 x 16"),
        ({"spacing_mm": [16.0, 8.0, 10.0]}, "is 20 x 40 x 28 voxels when resampled, less than a patch of 32 x 32 x 16"),
        ({"intensity_window": [3000, 4000]}, "100.0% of its voxels outside of 3000 to 4000"),
        ({"datalist#file": "dataset_all_labels.json"}, "dataset_all_labels.json  lists no unlabeled cases"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_the_check_follows_the_settings_of_the_run(workflow, capsys, settings, warning):
    workflow("train", **settings).initialize()
    assert warning in capsys.readouterr().out


def test_intensities_are_free_where_scaling_adapts_to_each_image(workflow, capsys):
    percentiles = {"_target_": "ScaleIntensityRangePercentilesd", "keys": "image", "lower": 1, "upper": 99}
    workflow("train", scale_intensity={**percentiles, "b_min": 0, "b_max": 1}).initialize()
    assert capsys.readouterr().out == ""
