"""What an annotator may save, and what is kept of what a client says of it."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dinomix_monai.data.anatomy import ORGANS


@pytest.fixture
def http(client, make_folder):
    return client(make_folder())


@pytest.fixture
def one_organ(labels: Path, edited) -> Path:
    """The label of the first case with its spleen, of value 1, alone."""
    return edited(labels / "phantom_001.nii", lambda label: np.where(label == 1, label, 0).astype(np.uint8))


def segments(*names: str) -> list[dict]:
    """What 3D Slicer sends of its segments."""
    return [{"name": name, "idx": number} for number, name in enumerate(names, 1)]


def info(http, name: str) -> dict:
    return http.get("/datastore/?output=all").json()["objects"][name]["labels"]["final"]["info"]


def test_a_training_knows_which_organs_are_done(
    client, make_folder, save_label, train, labels: Path, one_organ: Path
) -> None:
    http = client(make_folder())
    save_label(http, "case_1", one_organ, annotated=["spleen"])
    save_label(http, "case_2", labels / "phantom_002.nii")
    listed = json.loads((Path(train(http)["run"]) / "dataset.json").read_text())
    assert [case.get("annotated") for case in listed["training"]] == [["spleen"], None]


def test_a_label_is_complete_unless_somebody_says_otherwise(http, save_label, labels: Path, one_organ: Path) -> None:
    save_label(http, "case_1", one_organ, annotated=["spleen"])
    assert info(http, "case_1")["annotated"] == ["spleen"]
    for params in ({}, {"annotated": list(ORGANS)}, {"label_info": segments(*ORGANS)}):
        save_label(http, "case_1", labels / "phantom_001.nii", **params)
        assert "annotated" not in info(http, "case_1")


def test_what_is_done_can_be_said_later_and_in_slices(http, save_label, one_organ: Path) -> None:
    from monailabel.interfaces.utils.app import app_instance

    from dinomix_monai.label.checked_labels import labeled_scans

    save_label(http, "case_1", one_organ)
    drawn = np.asarray(nib.load(one_organ).dataobj).any(axis=(0, 1)).nonzero()[0].tolist()
    url = "/datastore/label/info?label=case_1&tag=final"
    said = {"annotated": ["spleen"], "annotated_slices": drawn}
    assert http.put(url, data={"info": json.dumps(said)}).status_code == 200
    assert said.items() <= info(http, "case_1").items()
    answer = http.put(url, data={"info": json.dumps({"annotated_slices": drawn[1:]})})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("The label of case_1 contradicts the list")
    assert said.items() <= info(http, "case_1").items()
    http.put(url, data={"info": json.dumps({"annotated": None, "annotated_slices": None})})
    assert labeled_scans(app_instance().datastore())[0].keys() == {"name", "image", "label"}
    answer = http.put(url.replace("case_1", "case_2"), data={"info": json.dumps(said)})
    assert answer.status_code == 404
    assert "label must be the name of a scan with a label of tag final, got 'case_2'" in answer.json()["detail"]


def test_what_two_processes_save_is_kept(studies: Path, one_organ: Path) -> None:
    from dinomix_monai.label.scan_store import ScanStore

    def open_store() -> ScanStore:
        return ScanStore(str(studies), ["*.nii"], ["background", *ORGANS])

    first, second = open_store(), open_store()
    second.save_label("case_2", str(one_organ), "final", {"annotated": ["spleen"]})
    first.save_label("case_1", str(one_organ), "final", {"annotated": ["spleen"]})
    second.update_label_info("case_2", "final", {"reader": "A"})
    third = open_store()
    assert [third.get_label_info(f"case_{number}", "final")["annotated"] for number in (1, 2)] == [["spleen"]] * 2


def test_a_segment_that_was_removed_in_slicer_is_not_done_and_moves_no_other(
    http, save_label, labels: Path, edited, studies: Path
) -> None:
    # Slicer numbers what it exports from 1 on: without the first segment, the second has the value 1.
    left = ORGANS[1:]
    file = edited(labels / "phantom_001.nii", lambda label: np.where(label > 1, label - 1, 0).astype(np.uint8))
    save_label(http, "case_1", file, label_info=segments(*left))
    assert info(http, "case_1")["annotated"] == list(left)
    truth = np.asarray(nib.load(labels / "phantom_001.nii").dataobj)
    kept = nib.load(studies / "labels" / "final" / "case_1.nii")
    np.testing.assert_array_equal(np.asarray(kept.dataobj), np.where(truth > 1, truth, 0))
    np.testing.assert_array_equal(kept.affine, nib.load(labels / "phantom_001.nii").affine)
    # What the kept file has, for who reads it by MONAI Label's words.
    assert {"name": ORGANS[1], "idx": 2} in info(http, "case_1")["label_info"]


def test_segments_in_another_order_go_to_their_classes(http, save_label, one_organ: Path, studies: Path) -> None:
    save_label(http, "case_1", one_organ, label_info=segments("liver", "spleen"), annotated=["liver"])
    kept = np.asarray(nib.load(studies / "labels" / "final" / "case_1.nii").dataobj)
    assert np.unique(kept).tolist() == [0, 1 + ORGANS.index("liver")]
    # What is said outright comes first.
    assert info(http, "case_1")["annotated"] == ["liver"]


@pytest.mark.parametrize(
    ("params", "detail"),
    [
        ({"annotated": ["livre"]}, "of the label of case_1 must name classes .* got 'livre'. Did you mean liver?"),
        ({"annotated": []}, "annotated of the label of case_1 must be a list with names of classes, got []"),
        ({"annotated": "spleen"}, "must be a list with names of classes, got 'spleen'"),
        ({"annotated": ["liver"]}, "must have all classes that are drawn in it, got none of spleen"),
        ({"label_info": segments("Segment_1")}, "got 'Segment_1'. Rename that segment, or remove it."),
        ({"label_info": [{"name": "spleen", "idx": 6}]}, "must number its segments 1, 2 .* got 6. Leave it out"),
    ],
)  # fmt: skip
def test_what_a_client_says_must_fit_the_app_and_the_label(
    http, save_label, one_organ: Path, studies: Path, params: dict, detail: str
) -> None:
    answer = save_label(http, "case_1", one_organ, status=422, **params)["detail"]
    assert all(part in answer for part in detail.split(" .* "))
    assert not list((studies / "labels" / "final").iterdir())


def test_values_beyond_the_segments_are_refused(http, save_label, labels: Path) -> None:
    answer = save_label(http, "case_1", labels / "phantom_001.nii", status=422, label_info=segments("liver"))
    assert "must name the segments in the order of their values, 1 to 1, got values up to 13" in answer["detail"]


@pytest.mark.parametrize(
    ("edit", "detail"),
    [
        (lambda label: np.where(label == 1, 77, label).astype(np.uint8), "has 1\\d* voxels of no class, from 77 to 77"),
        (lambda label: label[:-3], "has 37 x 40 x 28 voxels and its image 40 x 40 x 28"),
    ],
    ids=["values", "shape"],
)
def test_a_label_that_nobody_can_learn_from_is_refused_at_the_door(
    http, save_label, labels: Path, edited, studies: Path, edit, detail: str
) -> None:
    answer = save_label(http, "case_1", edited(labels / "phantom_001.nii", edit), status=422)["detail"]
    assert answer.startswith("The label of case_1 has ")
    assert detail.split("\\d*")[-1] in answer
    assert "/tmp" not in answer
    assert not list((studies / "labels" / "final").iterdir())
    assert not list(Path(tempfile.gettempdir()).iterdir())
    # What nobody learns from may be anything.
    save_label(http, "case_1", edited(labels / "phantom_001.nii", edit), tag="draft")


def test_a_label_that_lies_elsewhere_or_is_none_is_refused(http, save_label, labels: Path, tmp_path: Path) -> None:
    label = nib.load(labels / "phantom_001.nii")
    moved = label.affine + np.array([[0, 0, 0, 50], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), moved), tmp_path / "moved.nii")
    assert "50 mm" in save_label(http, "case_1", tmp_path / "moved.nii", status=422)["detail"]
    for name, detail in (("label.nii", "The label of case_1 is not NIfTI"), ("label.bin", "got one that ends in .bin")):
        (tmp_path / name).write_bytes(b"no volume")
        for params in ({}, {"label_info": segments("liver")}):
            assert detail in save_label(http, "case_1", tmp_path / name, status=422, **params)["detail"]


def test_an_unknown_scan_and_names_that_are_paths_are_refused(
    http, save_label, labels: Path, studies: Path, tmp_path: Path
) -> None:
    file = labels / "phantom_001.nii"
    detail = save_label(http, "nobody", file, status=404)["detail"]
    assert detail == "image must be the name of a scan of the studies, got 'nobody', which is none."
    assert "tag must be a plain name, got '../x'" in save_label(http, "case_1", file, tag="../x", status=422)["detail"]
    answer = http.put("/datastore/image?image=../stolen", files={"file": ("a.nii", file.read_bytes())})
    assert answer.status_code == 422
    assert answer.json()["detail"] == "image must be a plain name, got '../stolen'."
    assert not list(tmp_path.glob("stolen*"))
    assert http.put("/datastore/image?image=new", files={"file": ("a.nii", file.read_bytes())}).status_code == 200
