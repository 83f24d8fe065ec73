"""Label maps of a model for all scans that have none, as a data set for others."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

import dinomix_monai.__main__ as commands
from dinomix_monai import load_model
from dinomix_monai.autolabel import place_nifti
from dinomix_monai.data import make_datalist, open_datalist

CPU = {"device": "cpu", "amp": False}


def labels(file: Path) -> np.ndarray:
    return np.asarray(nib.load(file).dataobj)


def test_a_datastore_of_monai_label_tells_people_from_the_model(
    trained_bundle: Path, phantom: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    new = tmp_path / "new"
    commands.autolabel(str(trained_bundle), str(phantom), str(new), **CPU)
    final, original = ({file.name for file in (new / "labels" / tag).iterdir()} for tag in ("final", "original"))
    assert (len(final), len(original)) == (2, 2)
    assert {file.name for file in new.glob("*.nii.gz")} == final | original
    assert {file.name for file in (new / "uncertainty").iterdir()} == original
    model = load_model(trained_bundle, **CPU)
    datalist = open_datalist(phantom)
    for case in datalist.unlabeled:
        name = f"{Path(case['image']).name.partition('.')[0]}.nii.gz"
        expected = np.asarray(model.predict(case["image"]).label.dataobj)
        np.testing.assert_array_equal(labels(new / "labels" / "original" / name), expected)
        np.testing.assert_array_equal(labels(new / name), labels(Path(case["image"])))
    for case in datalist.training:
        name = f"{Path(case['label']).name.partition('.')[0]}.nii.gz"
        np.testing.assert_array_equal(labels(new / "labels" / "final" / name), labels(Path(case["label"])))
    with (new / "uncertainty.csv").open() as file:
        rows = [(row["scan"], float(row["uncertainty"])) for row in csv.DictReader(file)]
    assert [value for _, value in rows] == sorted((value for _, value in rows), reverse=True)
    assert {f"{name}.nii.gz" for name, _ in rows} == original
    printed = capsys.readouterr().out
    assert all(f"{name}: uncertainty {value:.3f}" in printed for name, value in rows)
    # What it made is a layout that init knows; the model's answers are no labels of people.
    made = make_datalist(new, class_names=datalist.class_names[1:])
    assert "a datastore of MONAI Label: 4 scans" in made.description
    assert len(json.loads((new / "dataset.json").read_text())["training"]) == 2


def test_a_raw_data_set_of_nnunet_has_all_as_labels(trained_bundle: Path, phantom: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    commands.autolabel(str(trained_bundle), str(phantom), str(new), layout="nnunet", **CPU)
    about = json.loads((new / "dataset.json").read_text())
    assert (about["numTraining"], about["labels"]["liver"], about["file_ending"]) == (4, 6, ".nii.gz")
    images, maps = ({file.name for file in (new / folder).iterdir()} for folder in ("imagesTr", "labelsTr"))
    assert {name.replace("_0000", "") for name in images} == maps
    assert len(maps) == 4
    held_out = [Path(case["image"]).stem for case in (*open_datalist(phantom).validation, *open_datalist(phantom).test)]
    assert not any(name.startswith(tuple(held_out)) for name in maps)
    assert "a raw data set of nnU-Net: 4 scans" in make_datalist(new, overwrite=True).description


def test_which_organs_are_done_goes_along(
    trained_bundle: Path, edited_phantom: Callable, phantom: Path, tmp_path: Path
) -> None:
    content = json.loads((phantom / "dataset.json").read_text())
    first, second = content["training"]
    partial = edited_phantom(training=[{**first, "annotated_slices": {"liver": [3]}}, second], unlabeled=[])
    new = tmp_path / "new"
    commands.autolabel(str(trained_bundle), str(partial), str(new), **CPU)
    make_datalist(new, class_names=list(content["labels"].values())[1:])
    made = json.loads((new / "dataset.json").read_text())["training"]
    assert [case.get("annotated_slices") for case in made] == [{"liver": [3]}, None]
    with pytest.raises(ValueError, match="layout must be monailabel for label maps that are not complete"):
        commands.autolabel(str(trained_bundle), str(partial), str(tmp_path / "other"), layout="nnunet", **CPU)


def test_what_cannot_be_is_refused_before_any_scan(
    trained_bundle: Path, phantom: Path, edited_phantom: Callable, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="layout must be one of monailabel, nnunet, got 'x'"):
        commands.autolabel(str(trained_bundle), str(phantom), str(tmp_path / "new"), layout="x", **CPU)
    with pytest.raises(FileExistsError, match="out_dir must be empty or not there yet"):
        commands.autolabel(str(trained_bundle), str(phantom), str(phantom), **CPU)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"out_dir must be a folder that can be written to, .* by --out_dir\."):
        commands.autolabel(str(trained_bundle), str(phantom), str(tmp_path / "file" / "new"), **CPU)
    other = edited_phantom(labels=["background", *(f"organ {value}" for value in range(1, 14))])
    with pytest.raises(ValueError, match="must have the classes of the model, background, spleen"):
        commands.autolabel(str(trained_bundle), str(other), str(tmp_path / "new"), **CPU)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("copy", [False, True])
def test_a_scan_is_linked_or_copied_and_its_header_says_what_it_said(tmp_path: Path, copy: bool) -> None:
    volume = nib.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([1.0, 2, 3, 1]))
    volume.header["descrip"] = b"a scanner"
    for name in ("a.nii", "b.nii.gz"):
        nib.save(volume, tmp_path / name)
        target = tmp_path / "new" / f"{name.partition('.')[0]}.nii.gz"
        place_nifti(tmp_path / name, target, copy)
        assert nib.load(target).header == nib.load(tmp_path / name).header
        np.testing.assert_array_equal(labels(target), labels(tmp_path / name))
        assert target.is_symlink() is (name.endswith(".gz") and not copy)
