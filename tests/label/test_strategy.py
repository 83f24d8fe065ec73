from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dinomix_monai.selection import next_scans


def next_case(http) -> dict:
    answer = http.post("/activelearning/dinomix", json={})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_copy_waits_and_every_scan_is_handed_out_before_one_comes_again(client, make_folder, studies: Path) -> None:
    shutil.copy(studies / "case_1.nii", studies / "case_2.nii")
    folder = make_folder()
    http = client(folder)
    following = [next_case(http) for _ in range(4)]
    names = [answer["id"] for answer in following]
    assert sorted(names[:3]) == ["case_1", "case_2", "case_3"]
    assert "case_3" in names[:2]
    assert "nearly the same as case_" in following[2]["reason"]
    assert following[0]["path"].endswith(f"{names[0]}.nii")
    assert following[0]["looked_at"] == following[0]["scans"] == 3
    assert names[3] in names[:3]
    assert len(list((folder.root / "thumbnails").glob("*.npy"))) == 3


def test_a_scan_like_a_labeled_one_waits(client, make_folder, save_label, phantom: Path, studies: Path) -> None:
    shutil.copy(studies / "case_1.nii", studies / "case_2.nii")
    http = client(make_folder())
    save_label(http, "case_1", phantom / "labels" / "phantom_001.nii")
    assert next_case(http)["id"] == "case_3"


def test_the_command_and_the_app_choose_alike(client, make_folder, studies: Path, tmp_path: Path) -> None:
    folder = make_folder()
    chosen = next_case(client(folder))
    images = [{"image": f"{name}.nii"} for name in ("case_1", "case_2", "case_3")]
    (studies / "dataset.json").write_text(json.dumps({"labels": ["background", "liver"], "unlabeled": images}))
    settings = {"dataset_dir": str(studies), "output_dir": str(tmp_path / "out")}
    [first] = next_scans(folder.bundle.parser("train", **settings), count=1)
    assert first.name == f"{chosen['id']}.nii"


def test_what_cannot_be_looked_at_comes_last_by_name(client, make_folder, studies: Path) -> None:
    (studies / "case_1.nii").write_bytes(b"damaged")
    http = client(make_folder())
    answers = [next_case(http) for _ in range(3)]
    assert sorted(answer["id"] for answer in answers[:2]) == ["case_2", "case_3"]
    assert answers[2]["id"] == "case_1"
    assert "first by name" in answers[2]["reason"]
    assert answers[2]["looked_at"] == 2


def test_an_annotator_does_not_wait_until_all_scans_are_looked_at(
    client, make_folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dinomix_monai.label.strategy._LOOKING_S", 0.0)
    folder = make_folder()
    http = client(folder)
    answer = next_case(http)
    assert (answer["id"], answer["looked_at"]) == ("case_1", 0)


def test_when_all_scans_have_labels_there_is_no_next(client, make_folder, save_label, phantom: Path) -> None:
    http = client(make_folder())
    for number in (1, 2, 3):
        save_label(http, f"case_{number}", phantom / "labels" / f"phantom_00{number}.nii")
    assert next_case(http) == {}
