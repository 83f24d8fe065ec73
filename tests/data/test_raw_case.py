from __future__ import annotations

import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from dinomix_monai.data import read_protocol
from dinomix_monai.data.raw_case import RawCase, find_cases

SECTIONS = {"training": ["0001"], "unlabeled": ["0002"], "validation": ["0003"], "test": ["0004"]}
PROTOCOL = read_protocol("synapse")
AFFINE = np.diag([-0.75, 0.75, 3.0, 1.0])


def save(path, array, slope=None, inter=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nifti = nib.Nifti1Image(array, AFFINE)
    nifti.header.set_slope_inter(slope, inter)
    nib.save(nifti, path)
    return path


def save_pair(folder, case, places=("img/img{}.nii.gz", "label/label{}.nii.gz")):
    for place in places:
        save(folder / place.format(case), np.zeros((4, 3, 2), dtype=np.int16))


def pair(tmp_path, image, label):
    return RawCase("a", {"image": save(tmp_path / "image.nii", image), "label": save(tmp_path / "label.nii", label)})


@pytest.mark.parametrize(
    ("images", "labels"), [("img/", "label/"), ("imagesTr/", "labelsTr/"), ("", "")], ids=["challenge", "Tr", "flat"]
)
def test_cases_are_found_in_each_usual_place(tmp_path, images, labels):
    for case in ("0001", "0002", "0003", "0004"):
        save_pair(tmp_path, case, (f"{images}img{{}}.nii.gz", f"{labels}label{{}}.nii.gz"))
    cases = find_cases(PROTOCOL, tmp_path, SECTIONS)
    assert [case.id for case in cases] == ["0001", "0002", "0003", "0004"]
    assert cases[0].files == {
        "image": tmp_path / f"{images}img0001.nii.gz",
        "label": tmp_path / f"{labels}label0001.nii.gz",
    }


def test_a_relative_folder_is_taken_from_where_one_is(tmp_path, monkeypatch):
    save_pair(tmp_path / "raw", "0001")
    monkeypatch.chdir(tmp_path)
    case = find_cases(PROTOCOL, "raw", {"test": ["0001"]})[0]
    assert case.files["image"] == tmp_path / "raw/img/img0001.nii.gz"


def test_training_and_test_cases_of_amos_are_in_different_folders(tmp_path):
    for case, part in (("0078", "Tr"), ("0008", "Va")):
        save_pair(tmp_path, case, (f"images{part}/amos_{{}}.nii.gz", f"labels{part}/amos_{{}}.nii.gz"))
    cases = find_cases(read_protocol("amos"), tmp_path, {"training": ["0078"], "test": ["0008"]})
    assert [case.files["label"].parent.name for case in cases] == ["labelsTr", "labelsVa"]


def test_the_label_of_an_unlabeled_case_is_not_looked_for(tmp_path):
    save_pair(tmp_path, "0002")
    assert find_cases(PROTOCOL, tmp_path, {"unlabeled": ["0002"]})[0].files.keys() == {"image"}
    (tmp_path / "label/label0002.nii.gz").unlink()
    assert find_cases(PROTOCOL, tmp_path, {"unlabeled": ["0002"]})[0].problem(14) is None


def test_all_missing_files_are_named_at_once(tmp_path):
    for case in ("0001", "0003"):
        save_pair(tmp_path, case)
    (tmp_path / "label/label0003.nii.gz").unlink()
    message = (
        f"raw_dir must hold every case of protocol skcdf of synapse, got {tmp_path} without the image of 0002, 0004 "
        "and the label of 0003. Looked for img/img{id}.nii.gz with label/label{id}.nii.gz or imagesTr/img{id}.nii.gz "
        "with labelsTr/label{id}.nii.gz or img{id}.nii.gz with label{id}.nii.gz."
    )
    with pytest.raises(FileNotFoundError) as error:
        find_cases(PROTOCOL, tmp_path, SECTIONS)
    assert str(error.value) == message


def test_a_nifti_is_read_as_simpleitk_reads_it_but_for_the_order_of_axes(tmp_path):
    sitk = pytest.importorskip("SimpleITK")
    stored = np.random.default_rng(0).integers(-500, 500, (5, 4, 3)).astype(np.int16)
    case = RawCase("a", {"image": save(tmp_path / "a.nii.gz", stored, slope=2, inter=-1024)})
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(case.files["image"])))
    assert (case.read("image") == expected.T).all()
    assert (case.read("image") == stored * 2.0 - 1024).all()
    assert case.shape("image") == (5, 4, 3)
    assert (case.affine == AFFINE).all()


@pytest.mark.parametrize(("axes", "shape"), [("xyz", (2, 3, 4)), ("zyx", (4, 3, 2))])
def test_an_h5_file_holds_image_and_label_and_no_spacing(tmp_path, axes, shape):
    h5py = pytest.importorskip("h5py")
    stored = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    protocol = replace(PROTOCOL, files=[{"image": "{id}.h5"}], axes=axes, spacing_mm=[1.5, 1.5, 10.0])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"], file["label"] = stored, stored.astype(np.uint8)
    case = find_cases(protocol, tmp_path, {"training": ["a"]})[0]
    assert case.shape("image") == case.read("image").shape == case.read("label").shape == shape
    assert case.read("image")[1, 2, 0] == (stored[1, 2, 0] if axes == "xyz" else stored[0, 2, 1])
    assert case.affine.tolist() == np.diag([1.5, 1.5, 10.0, 1.0]).tolist()


def test_without_h5py_the_error_tells_how_to_get_it(tmp_path, monkeypatch):
    (tmp_path / "a.h5").touch()
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ImportError, match=r"`h5py` package is required .*`pip install dinomix-monai\[h5\]"):
        RawCase("a", {"image": tmp_path / "a.h5"}).read("image")


def test_a_case_as_it_should_be_has_no_problem(tmp_path):
    label = np.array([[[0, 13]]], dtype=np.uint8)
    assert pair(tmp_path, label.astype(np.int16), label).problem(14) is None


@pytest.mark.parametrize(
    ("image", "label", "problem"),
    [
        (np.zeros((2, 3, 4, 1)), np.zeros((2, 3, 4)), "image must be one volume of three axes, got shape (2, 3, 4, 1)"),
        (
            np.zeros((2, 3, 4)),
            np.zeros((2, 4, 3)),
            "label must lie on the grid of its image, got one that has 2 x 4 x 3 voxels and its image 2 x 3 x 4",
        ),
        (np.zeros((1, 1, 2)), np.array([[[0, 14.0]]]), "label must have whole values from 0 to 13, got 0.0 to 14.0"),
        (np.zeros((1, 1, 2)), np.array([[[-1.0, 1]]]), "label must have whole values from 0 to 13, got -1.0 to 1.0"),
        (np.zeros((1, 1, 2)), np.array([[[0.5, 1]]]), "label must have whole values from 0 to 13, got 0.5 to 1.0"),
        (np.zeros((1, 1, 2)), np.array([[[np.nan, 1]]]), "label must have whole values from 0 to 13, got nan to nan"),
    ],
    ids=["4D", "shapes", "too large", "negative", "fraction", "NaN"],
)
def test_what_is_wrong_with_a_case_is_said_in_a_sentence(tmp_path, image, label, problem):
    assert pair(tmp_path, image, label).problem(14) == f"{problem}."


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.h5"])
def test_a_file_of_another_kind_is_a_problem(tmp_path, name):
    if name.endswith("h5"):
        pytest.importorskip("h5py")
    (tmp_path / name).write_text("no image")
    problem = RawCase("a", {"image": tmp_path / name}).problem(14)
    assert problem.startswith(f"{tmp_path / name} must hold a readable image, got ")


def test_a_damaged_label_is_a_problem(tmp_path):
    volume = np.random.default_rng(0).integers(0, 14, (32, 32, 8)).astype(np.int16)
    case = RawCase("a", {key: save(tmp_path / f"{key}.nii.gz", volume) for key in ("image", "label")})
    content = case.files["label"].read_bytes()
    damages = {
        content[: len(content) // 2]: "EOFError: ",
        content[:20] + b"\xff" * 64 + content[84:]: "one that is cut short or damaged. Copy",
    }
    for damaged, error in damages.items():
        case.files["label"].write_bytes(damaged)
        assert case.problem(14).startswith(f"{case.files['label']} must hold a readable label, got {error}")


def test_an_h5_file_without_a_label_is_a_problem(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["image"] = np.zeros((2, 3, 4))
    case = RawCase("a", {"image": tmp_path / "a.h5", "label": tmp_path / "a.h5"})
    assert "a.h5 must hold a readable label, got KeyError" in case.problem(2)
