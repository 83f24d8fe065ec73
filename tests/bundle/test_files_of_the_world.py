"""What headers and label maps of other programs do at each door: the right result, or a refusal that names the file."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from dinomix_monai.models import write_model
from tests.bundle.conftest import WITHOUT_REPORT

IMAGE, LABEL = "images/phantom_001.nii", "labels/phantom_001.nii"
TESTED = "labels/phantom_006.nii"
SHIFT = np.eye(4)
SHIFT[0, 3] = 60.0


def edit(path: Path, change: Callable[[nib.Nifti1Image], object]) -> Path:
    """Changes the header of a file and leaves its voxels."""
    volume = nib.load(path)
    image = nib.Nifti1Image(np.array(volume.dataobj), volume.affine, volume.header)
    change(image)
    nib.save(image, path)
    return path


def pixdim(*sizes: float) -> Callable[[nib.Nifti1Image], object]:
    def change(image: nib.Nifti1Image) -> None:
        image.header["pixdim"][1:4] = sizes
        # Most writers leave the form empty that they do not use; nibabel does not.
        for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
            image.header[field] = 0

    return change


def uncoded(image: nib.Nifti1Image) -> None:
    image.header["sform_code"] = image.header["qform_code"] = 0
    # Or nibabel would write the affine that it has in mind.
    image._affine = None


def registered(image: nib.Nifti1Image) -> None:
    """As after a registration: the qform is where the scanner saw it, the sform where it was moved to."""
    image.set_qform(image.affine, 1)
    image.set_sform(SHIFT @ image.affine, 2)


def in_meters(image: nib.Nifti1Image) -> None:
    affine = np.diag([1e-3, 1e-3, 1e-3, 1]) @ image.affine
    image.set_sform(affine, 2)
    image.header["pixdim"][1:4] /= 1000
    image.header.set_xyzt_units("meter")


def turned(path: Path, axcodes: str = "PIR") -> None:
    """Stores a volume along other axes and in other directions, at the same places (by nibabel)."""
    volume = nib.load(path)
    change = ornt_transform(io_orientation(volume.affine), axcodes2ornt(axcodes))
    array = apply_orientation(np.array(volume.dataobj), change)
    nib.save(nib.Nifti1Image(array, volume.affine @ inv_ornt_aff(change, volume.shape)), path)


@pytest.fixture
def model_file(workflow, tmp_path: Path) -> Path:
    """A model with random weights, as a training leaves it."""
    path = tmp_path / "models" / "model.pt"
    built = workflow("train")
    torch.manual_seed(0)
    network, datalist = (built.parser.get_parsed_content(name) for name in ("network_def", "datalist"))
    return write_model(network, path, datalist.class_names)


@pytest.fixture
def segment(run, phantom: Path, model_file: Path, tmp_path: Path) -> Callable[..., nib.Nifti1Image]:
    """Runs inference.json on a copy of a scan whose header has been changed; returns scan and label map."""

    def call(change: Callable[[nib.Nifti1Image], object] | None = None) -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
        file = Path(shutil.copy(phantom / IMAGE, tmp_path / "scan.nii"))
        if change is not None:
            edit(file, change)
        output = tmp_path / "output"
        paths = {"dataset_dir": str(file), "output_dir": str(output), "model_file": str(model_file)}
        run("inference", kind="infer", run_id="inferring", **paths)
        return nib.load(file), nib.load(output / "scan_seg.nii.gz")

    return call


@pytest.fixture
def scores(run, edited_phantom, model_file: Path, tmp_path: Path) -> Callable[..., list[dict[str, str]]]:
    """Scores the model on the test cases of a phantom whose files have been changed; rows of metrics.csv."""

    def call(change: Callable[[Path], object], **settings: object) -> list[dict[str, str]]:
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
        folder = edited_phantom()
        change(folder)
        run("train", "evaluate", run_id="evaluating", dataset_dir=str(folder), **settings)
        with (tmp_path / "evaluation" / "metrics.csv").open() as file:
            return list(csv.DictReader(file))

    return call


def message(call: Callable[[], object], capsys: pytest.CaptureFixture) -> str:
    """What stands on stderr when a run fails."""
    with pytest.raises(Exception) as caught:  # noqa: PT011  # MONAI wraps it
        call()
    capsys.readouterr()
    sys.excepthook(caught.type, caught.value, caught.tb)
    return capsys.readouterr().err


class TestInferring:
    def test_a_pixdim_beside_its_sform_moves_nothing(self, segment):
        """MONAI's reader would take the empty qform, which turns the scan by 180 degrees."""
        _, expected = segment()
        with pytest.warns(UserWarning, match=r"scan\.nii has voxels of 8 x 8 x 10 mm by its sform and of 8\.01 x"):
            scan, found = segment(pixdim(8.01, 8, 10))
        np.testing.assert_array_equal(found.dataobj, expected.dataobj)
        np.testing.assert_array_equal(found.affine, scan.affine)
        assert len(np.unique(expected.dataobj)) > 1

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (pixdim(1, 1, 1), "has voxels of 8 x 8 x 10 mm by its sform and of 1 x 1 x 1 mm by its pixdim"),
            (lambda image: image.header.__setitem__("srow_x", [0, 0, 0, 0]), "has a singular affine"),
            (lambda image: image.header.__setitem__("srow_y", [np.nan] * 4), "has a singular affine"),
        ],
        ids=["pixdim", "zeros", "NaN"],
    )
    def test_a_header_that_contradicts_itself_is_refused(self, segment, capsys, change, problem):
        def damaged(image: nib.Nifti1Image) -> None:
            change(image)
            image._affine = None

        text = message(lambda: segment(damaged), capsys)
        assert re.search(rf"got .*scan\.nii, which {re.escape(problem)}", text)

    def test_both_forms_of_a_registered_scan_are_kept_so_that_viewers_show_both_in_one_place(self, segment, tmp_path):
        sitk = pytest.importorskip("SimpleITK")
        _, expected = segment()
        scan, found = segment(registered)
        np.testing.assert_array_equal(found.dataobj, expected.dataobj)
        for form in ("sform", "qform"):
            affines = [getattr(each, f"get_{form}")(coded=True) for each in (scan, found)]
            np.testing.assert_array_equal(affines[0][0], affines[1][0])
            assert affines[0][1] == affines[1][1]
        assert np.abs(found.get_sform() - found.get_qform()).max() == 60
        places = [sitk.ReadImage(str(path)) for path in (tmp_path / "scan.nii", tmp_path / "output/scan_seg.nii.gz")]
        assert places[0].GetOrigin() == places[1].GetOrigin()
        assert places[0].GetDirection() == places[1].GetDirection()
        assert places[0].GetSpacing() == places[1].GetSpacing()

    def test_a_scan_that_does_not_say_how_the_patient_lies_is_segmented_with_a_warning_and_its_codes(self, segment):
        with pytest.warns(UserWarning, match=r"scan\.nii does not say how the patient lies \(sform and qform have"):
            scan, found = segment(uncoded)
        assert [int(found.header[f"{form}_code"]) for form in ("sform", "qform")] == [0, 0]
        np.testing.assert_array_equal(found.affine, scan.affine)

    def test_lengths_in_meters_are_meters(self, segment):
        _, expected = segment()
        scan, found = segment(in_meters)
        np.testing.assert_array_equal(found.dataobj, expected.dataobj)
        np.testing.assert_array_equal(found.affine, scan.affine)
        assert found.header.get_xyzt_units()[0] == "meter"

    def test_a_folder_of_scans_and_their_label_maps_can_be_segmented_again(self, run, phantom, model_file, tmp_path):
        folder = tmp_path / "scans"
        folder.mkdir()
        shutil.copy(phantom / IMAGE, folder / "A.NII")
        for _ in range(2):
            run(
                "inference",
                kind="infer",
                run_id="inferring",
                dataset_dir=str(folder),
                output_dir=str(folder),
                model_file=str(model_file),
            )
        assert sorted(path.name for path in folder.glob("*.*")) == ["A.NII", "A_seg.nii.gz"]


class TestTraining:
    def test_volumes_are_where_nibabel_says(self, workflow, edited_phantom, phantom):
        """An image whose pixdim is a little off, and a label that is not: they stay together."""
        folder = edited_phantom()
        edit(folder / IMAGE, pixdim(8.01, 8, 10))
        found, expected = (
            workflow("train", dataset_dir=str(each)).parser.get_parsed_content("train#dataset")._cache[0]
            for each in (folder, phantom)
        )
        assert torch.equal(found["image"], expected["image"])
        assert torch.equal(found["label"], expected["label"])

    def test_a_label_in_another_orientation_is_learned_as_it_lies(self, run, workflow, edited_phantom, phantom, capsys):
        folder = edited_phantom()
        turned(folder / LABEL)
        shape = nib.load(folder / LABEL).shape
        assert shape != nib.load(phantom / LABEL).shape
        found, expected = (
            workflow("train", dataset_dir=str(each)).parser.get_parsed_content("train#dataset")._cache[0]["label"]
            for each in (folder, phantom)
        )
        assert torch.equal(found, expected)
        run("train", dataset_dir=str(folder), epochs=1, **WITHOUT_REPORT)
        assert "off its image" not in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda image: image.set_sform(SHIFT @ image.affine, 2), "lies up to 60 mm off its image"),
            (lambda image: image.header.set_slope_inter(0.99999, 0), "voxels of others, from 0.99999 to"),
        ],
        ids=["elsewhere", "no whole numbers"],
    )
    def test_a_label_that_does_not_fit_is_refused_without_the_check(self, run, edited_phantom, capsys, change, problem):
        folder = edited_phantom()
        edit(folder / LABEL, change)
        text = message(lambda: run("train", dataset_dir=str(folder), check_data=False), capsys)
        assert "Traceback" not in text
        assert re.search(rf"phantom_001\.nii.*{problem}|whole numbers below 14 .*0\.99999", text)

    def test_validation_cases_without_a_class_choose_no_model_and_end_no_training(self, run, edited_phantom, tmp_path):
        folder = edited_phantom()
        (case,) = json.loads((folder / "dataset.json").read_text())["validation"]
        volume = nib.load(folder / case["label"])
        empty = nib.Nifti1Image(np.zeros(volume.shape, np.uint8), volume.affine)
        nib.save(empty, folder / case["label"])
        with pytest.warns(UserWarning, match="No validation case has any of the classes"):
            trained = run("train", dataset_dir=str(folder), epochs=3, patience=1)
        assert trained.parser.get_parsed_content("train#trainer").state.epoch == 3
        weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
        last = trained.parser.get_parsed_content("ema_teacher").module.state_dict()
        assert all(torch.equal(weights[name], last[name]) for name in weights)
        with (tmp_path / "history.csv").open() as file:
            assert [row["val_mean_dice"] for row in csv.DictReader(file)] == ["", "", ""]


class TestEvaluating:
    def test_a_label_in_another_orientation_has_the_same_scores(self, scores):
        expected = scores(lambda folder: None)
        assert any(row["outcome"] == "found" for row in expected)
        assert scores(lambda folder: turned(folder / TESTED)) == expected

    @pytest.mark.parametrize("check_data", [True, False])
    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda image: image.set_sform(SHIFT @ image.affine, 2), "lies up to 60 mm off its image"),
            (lambda image: image.header.set_slope_inter(0.99999, 0), "from 0.99999 to 12.9999"),
            (lambda image: image.header.set_slope_inter(1.5, 0), "from 1.5 to 19.5"),
            (lambda image: image.header.set_slope_inter(2, 0), "from 14 to 26"),
        ],
        ids=["elsewhere", "almost whole numbers", "a slope", "values beyond the classes"],
    )
    def test_a_label_that_does_not_fit_is_refused(self, scores, capsys, change, problem, check_data):
        text = message(lambda: scores(lambda folder: edit(folder / TESTED, change), check_data=check_data), capsys)
        assert "phantom_006.nii" in text
        assert problem in text

    def test_cases_are_named_by_their_path_so_that_all_may_be_called_ct(self, scores):
        def renamed(folder: Path) -> None:
            content = json.loads((folder / "dataset.json").read_text())
            for number, case in enumerate(content["test"]):
                for key, name in (("image", "ct.nii"), ("label", "organs.nii")):
                    place = f"s{number}/{name}"
                    (folder / place).parent.mkdir(exist_ok=True)
                    (folder / case[key]).rename(folder / place)
                    case[key] = place
            (folder / "dataset.json").write_text(json.dumps(content))

        assert {row["case"] for row in scores(renamed)} == {"s0/ct.nii", "s1/ct.nii"}

    def test_only_the_cases_of_its_list_are_checked(self, scores):
        assert scores(lambda folder: (folder / IMAGE).with_name("phantom_003.nii").exists())
        # As those of headers are; NumPy has others for libraries.
        warnings.simplefilter("error", UserWarning)
        rows = scores(lambda folder: edit(folder / IMAGE, registered))
        assert {row["case"] for row in rows} == {"images/phantom_006.nii", "images/phantom_007.nii"}
