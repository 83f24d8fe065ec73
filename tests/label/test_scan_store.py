from __future__ import annotations

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest


@pytest.fixture
def messy(studies: Path) -> Path:
    """Scans beside what other programs and earlier runs leave in their folder."""
    shutil.copy(studies / "case_1.nii", studies / "._case_1.nii")
    (studies / "._case_2.nii.gz").write_bytes(b"left by macOS")
    label = nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.diag([2, 2, 3, 1]))
    label.header.set_intent("label")
    nib.save(label, studies / "case_1_seg.nii.gz")
    (studies / "case_3.nii").rename(studies / "CASE_3.NII")
    (studies / "other.mgz").touch()
    (studies / "sub").mkdir()
    return studies


def test_only_scans_are_listed_and_handed_out(client, make_folder, messy: Path) -> None:
    http = client(make_folder())
    listed = set(http.get("/datastore/?output=all").json()["objects"])
    assert listed == {"case_1", "case_2", "CASE_3"}
    handed_out = {http.post("/activelearning/dinomix").json()["id"] for _ in range(3)}
    assert handed_out == listed


def test_what_is_left_out_is_named(client, make_folder, messy: Path, caplog) -> None:
    client(make_folder())
    lines = [record.getMessage() for record in caplog.records if record.name.endswith("scan_store")]
    assert lines == [f"Left out of {messy} (no scan, or a second of its name): case_1_seg.nii.gz, other.mgz, sub/."]


def test_a_scan_of_the_same_name_as_another_is_named(client, make_folder, studies: Path, caplog) -> None:
    nib.save(nib.load(studies / "case_1.nii"), studies / "case_1.nii.gz")
    client(make_folder())
    (line,) = [record.getMessage() for record in caplog.records if record.name.endswith("scan_store")]
    assert line in [
        f"Left out of {studies} (no scan, or a second of its name): case_1.nii{end}." for end in ("", ".gz")
    ]


def test_a_scan_with_capitals_in_its_ending_is_labeled_and_segmented(
    client, make_folder, give_model, messy: Path, phantom: Path, save_label
) -> None:
    folder = make_folder()
    give_model(folder)
    http = client(folder)
    assert http.post("/infer/dinomix?image=CASE_3&output=json").status_code == 200
    save_label(http, "CASE_3", phantom / "labels" / "phantom_003.nii")
    assert (messy / "labels" / "final" / "CASE_3.nii").is_file()
    assert http.get("/datastore/").json()["completed"] == 1


def test_what_an_earlier_server_has_listed_and_is_no_scan_goes(client, make_folder, studies: Path) -> None:
    from monailabel.datastore.local import LocalDatastore

    (studies / "._case_1.nii").write_bytes(b"left by macOS")
    LocalDatastore(str(studies))
    assert "._case_1" in (studies / "datastore_v2.json").read_text()
    assert set(client(make_folder()).get("/datastore/?output=all").json()["objects"]) == {"case_1", "case_2", "case_3"}
    assert (studies / "._case_1.nii").is_file()
