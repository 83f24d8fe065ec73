from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ResampleToMatch

from dinomix_monai.data.anatomy import ORGANS
from dinomix_monai.engines import TokenProbe
from dinomix_monai.label import AppFolder, Refusal
from dinomix_monai.label.first_answer import FirstAnswer
from dinomix_monai.label.infer_task import DinoMixInferTask
from tests.label.conftest import SETTINGS
from tests.label.dicom_series import dicom_series

# Class 1 where the scaled intensity is above one half, which is 40 HU: a network that anyone can compute.
THRESHOLD = {
    "network_def": {"_target_": "torch.nn.Conv3d", "in_channels": 1, "out_channels": 2, "kernel_size": 1},
    "patch_size": [32, 32, 16],
    "spacing_mm": [4.0, 4.0, 4.0],
}
WEIGHTS = {"weight": torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1, 1), "bias": torch.tensor([0.5, 0.0])}


@pytest.fixture
def threshold(make_folder) -> AppFolder:
    folder = make_folder(labels=["dense"], settings=THRESHOLD)
    torch.save(WEIGHTS, folder.model_file)
    return folder


@pytest.fixture
def segment(client, tmp_path: Path) -> Callable[..., nib.Nifti1Image]:
    """Label map of a scan through REST."""

    def call(folder: AppFolder, name: str) -> nib.Nifti1Image:
        answer = client(folder).post(f"/infer/dinomix?image={name}&output=image")
        assert answer.status_code == 200, answer.text
        is_zipped = answer.content.startswith(b"\x1f\x8b")
        file = tmp_path / ("label.nii.gz" if is_zipped else "label.nii")
        file.write_bytes(answer.content)
        return nib.load(file)

    return call


def oblique(studies: Path) -> nib.Nifti1Image:
    """An off-center ellipsoid whose axes are permuted, flipped and oblique."""
    grid = np.stack(np.meshgrid(*(np.linspace(0, 1, n) for n in (30, 36, 40)), indexing="ij"), -1)
    distance = (((grid - (0.38, 0.55, 0.62)) / (0.3, 0.22, 0.16)) ** 2).sum(-1)
    angle = np.deg2rad(12)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.array([[0, 0, 3], [-2.5, 0, 0], [0, 3.5, 0]])
    affine[:3, 3] = (-91, 37, 811)
    image = nib.Nifti1Image(np.clip(40 + 200 * (1 - distance), -160, 240).astype(np.int16), affine)
    nib.save(image, studies / "oblique.1.nii.gz")
    return nib.load(studies / "oblique.1.nii.gz")


def test_the_label_map_lies_on_the_grid_of_the_scan(segment, threshold, studies: Path) -> None:
    image = oblique(studies)
    label = segment(threshold, "oblique.1")
    assert label.shape == image.shape
    np.testing.assert_array_equal(label.affine, image.affine)
    assert label.get_data_dtype() == np.uint8
    found, truth = np.asarray(label.dataobj) == 1, np.asarray(image.dataobj) > 40
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.9
    # Half a voxel is what a wrong convention of voxel centers would move it by.
    assert np.abs(np.argwhere(found).mean(0) - np.argwhere(truth).mean(0)).max() < 0.2


def test_other_formats_lie_where_the_scan_does(client, threshold, studies: Path, tmp_path: Path) -> None:
    import itk  # it writes every format but NIfTI

    image = oblique(studies)
    answer = client(threshold).post(
        "/infer/dinomix?image=oblique.1&output=image", data={"params": json.dumps({"result_extension": ".nrrd"})}
    )
    (tmp_path / "label.nrrd").write_bytes(answer.content)
    label = itk.imread(str(tmp_path / "label.nrrd"))
    assert itk.template(label)[1][0] is itk.UC
    # ITK counts x and y to the left and to the back.
    corner = np.array(label.TransformIndexToPhysicalPoint([3, 5, 7])) * (-1, -1, 1)
    np.testing.assert_allclose(corner, (image.affine @ (3, 5, 7, 1))[:3], atol=1e-3)


def test_info_names_labels_and_colors_of_the_app_and_not_of_the_phantom(client, make_folder) -> None:
    info = client(make_folder(labels=["tumor", "Liver"])).get("/info/").json()
    assert info["labels"] == ["tumor", "Liver"]
    model = info["models"]["dinomix"]
    assert model["labels"] == {"tumor": 1, "Liver": 2}
    assert (model["type"], model["dimension"]) == ("segmentation", 3)
    colors = list(model["label_colors"].values())
    assert len({tuple(color) for color in colors}) == 2
    assert all(0 <= part <= 255 for color in colors for part in color)


def test_without_labels_of_its_own_the_app_has_the_organs_of_the_bundle(client, make_folder) -> None:
    assert client(make_folder()).get("/info/").json()["labels"] == list(ORGANS)


def test_the_answer_names_labels_and_colors(client, threshold, studies: Path) -> None:
    result = client(threshold).post("/infer/dinomix?image=case_1&output=json").json()
    assert result["label_names"] == {"dense": 1}
    assert list(result["label_colors"]) == ["dense"]


def test_without_a_model_the_answer_says_so(client, make_folder) -> None:
    answer = client(make_folder()).post("/infer/dinomix?image=case_1")
    assert (answer.status_code, answer.json()["detail"]) == (
        409,
        "Segmentation needs a model, and the app has none yet. Label scans and train one. With a pre-trained teacher "
        "(--teacher_weights) one labeled scan gives a first answer.",
    )


def test_before_there_is_a_model_the_teacher_answers_by_the_first_labels(
    client, make_folder, save_label, phantom: Path, teacher_file: Path, tmp_path: Path, monkeypatch
) -> None:
    model = {"teacher#model_name": "test_vit", "teacher#layer": 0}
    folder = make_folder(teacher_weights=str(teacher_file), settings={**SETTINGS, **model})
    http, fits, fit = client(folder), [], TokenProbe.fit
    monkeypatch.setattr(TokenProbe, "fit", lambda probe, scans: fits.append(len(scans)) or fit(probe, scans))
    assert http.post("/infer/dinomix?image=case_1").status_code == 409  # nothing is labeled
    save_label(http, "case_1", phantom / "labels" / "phantom_001.nii")
    answer = http.post("/infer/dinomix?image=case_1&output=json")
    assert answer.status_code == 200
    assert "There is no model yet" in answer.json()["warnings"][-1]
    assert http.post("/infer/dinomix?image=case_2&output=json").status_code == 200
    assert fits == [1]
    save_label(http, "case_2", phantom / "labels" / "phantom_002.nii")
    http.post("/infer/dinomix?image=case_3&output=json")
    assert fits == [1, 2]  # anew, with the new label
    said = {"annotated_slices": list(range(28))}
    http.put("/datastore/label/info?label=case_2&tag=final", data={"info": json.dumps(said)})
    http.post("/infer/dinomix?image=case_3&output=json")
    assert fits == [1, 2, 2]  # and with what somebody has looked for
    listed = json.loads((folder.root / "tmp" / "first_answer" / "dataset.json").read_text())
    assert said.items() <= listed["training"][1].items()
    file = tmp_path / "label.nii"
    file.write_bytes(http.post("/infer/dinomix?image=case_1&output=image").content)
    labels = (np.asarray(nib.load(one).dataobj) == 6 for one in (file, phantom / "labels" / "phantom_001.nii"))
    found, liver = labels
    assert 2 * (found & liver).sum() / (found.sum() + liver.sum()) > 0.3


def test_a_teacher_that_is_missing_is_named_in_the_first_answer(
    client, make_folder, save_label, phantom: Path, tmp_path: Path
) -> None:
    http = client(make_folder(teacher_weights=str(tmp_path / "gone.pth")))
    save_label(http, "case_1", phantom / "labels" / "phantom_001.nii")
    answer = http.post("/infer/dinomix?image=case_1")
    assert answer.status_code == 409
    assert re.search(r"the teacher cannot answer\. .*gone\.pth", answer.json()["detail"])


def test_a_model_of_other_classes_is_refused(client, threshold) -> None:
    torch.save({"weight": torch.zeros(3, 1, 1, 1, 1), "bias": torch.zeros(3)}, threshold.model_file)
    answer = client(threshold).post("/infer/dinomix?image=case_1")
    assert answer.status_code == 409
    assert "The model does not fit the app." in answer.json()["detail"]
    assert "of which bias has the shape (3,) and not (2,)" in answer.json()["detail"]


def test_a_new_model_is_used_from_the_next_request_on(segment, threshold) -> None:
    before = np.array(segment(threshold, "case_1").dataobj)
    torch.save({**WEIGHTS, "bias": torch.tensor([0.0, 9.0])}, threshold.model_file)
    after = np.asarray(segment(threshold, "case_1").dataobj)
    assert 0 < before.mean() < 1
    assert after.min() == 1


def test_a_result_elsewhere_on_the_disk_is_refused(threshold) -> None:
    with pytest.raises(Refusal, match=r"result_extension must be an extension .*, got '/\.\./\.\./stolen'"):
        DinoMixInferTask(threshold, FirstAnswer(threshold, list))({"image": "any", "result_extension": "/../../stolen"})


@pytest.mark.parametrize("is_archive", [False, True], ids=["files", "zip"])
def test_a_dicom_series_is_segmented(client, threshold, tmp_path: Path, is_archive: bool) -> None:
    series = tmp_path / "series"
    series.mkdir()
    volume = dicom_series(series)
    http = client(threshold)
    sent = [Path(shutil.make_archive(str(series), "zip", series))] if is_archive else sorted(series.iterdir())
    files = [("files", (file.name, file.read_bytes())) for file in sent]
    session = http.put(f"/session/?uncompress={is_archive}", files=files).json()["session_id"]
    answer = http.post(f"/infer/dinomix?session_id={session}&output=image")
    assert answer.status_code == 200, answer.text
    (tmp_path / "label.nii.gz").write_bytes(answer.content)
    label = nib.load(tmp_path / "label.nii.gz")
    # x and y of DICOM run to the left and to the back.
    truth = MetaTensor(torch.from_numpy(volume[None] > 40).float(), affine=np.diag([-4, -4, 5, 1.0]))
    grid = MetaTensor(torch.zeros(1, *label.shape), affine=label.affine)
    expected = ResampleToMatch(mode="nearest")(truth, grid)[0].numpy() > 0
    found = np.asarray(label.dataobj) == 1
    assert 2 * (found & expected).sum() / (found.sum() + expected.sum()) > 0.9


def test_both_forms_of_a_registered_scan_are_kept(segment, threshold, studies: Path) -> None:
    image = oblique(studies)
    image.set_qform(image.affine, 1)
    moved = image.affine.copy()
    moved[0, 3] += 60
    image.set_sform(moved, 2)
    # Of its voxels a copy, because the file is mapped.
    nib.save(nib.Nifti1Image(np.array(image.dataobj), None, image.header), studies / "oblique.1.nii.gz")
    label = segment(threshold, "oblique.1")
    np.testing.assert_array_equal(label.get_sform(), image.get_sform())
    np.testing.assert_array_equal(label.get_qform(), image.get_qform())
    assert [int(label.header[f"{form}_code"]) for form in ("sform", "qform")] == [2, 1]
    np.testing.assert_allclose(label.get_sform()[0, 3] - label.get_qform()[0, 3], 60, atol=1e-3)


def test_what_may_be_wrong_with_a_scan_is_said_with_its_label_map(client, threshold, studies: Path) -> None:
    image = oblique(studies)
    image.header["sform_code"] = image.header["qform_code"] = 0
    nib.save(nib.Nifti1Image(np.array(image.dataobj), None, image.header), studies / "oblique.1.nii.gz")
    http = client(threshold)
    assert http.post("/infer/dinomix?image=case_1&output=json").json()["warnings"] == []
    (warning,) = http.post("/infer/dinomix?image=oblique.1&output=json").json()["warnings"]
    assert warning.startswith("oblique.1.nii.gz does not say how the patient lies (sform and qform have code 0)")


def test_a_scan_whose_header_contradicts_itself_is_refused(client, threshold, studies: Path) -> None:
    image = oblique(studies)
    image.header["pixdim"][1:4] = 1
    nib.save(nib.Nifti1Image(np.array(image.dataobj), None, image.header), studies / "oblique.1.nii.gz")
    answer = client(threshold).post("/infer/dinomix?image=oblique.1")
    assert answer.status_code == 422
    assert re.search(r"got oblique\.1\.nii\.gz, which has voxels of 2\.5 .* by its pixdim", answer.json()["detail"])
