from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dinomix_monai.label import Refusal


@pytest.fixture
def secret(tmp_path: Path, studies: Path) -> Path:
    """A scan that lies beside the studies."""
    return (studies / "case_3.nii").rename(tmp_path / "secret.nii")


def test_a_path_outside_of_the_studies_is_refused(client, make_folder, give_model, secret: Path) -> None:
    folder = make_folder()
    give_model(folder)
    http = client(folder)
    for image in (str(secret), f"{secret.parent}/studies/../secret.nii"):
        answer = http.post(f"/infer/dinomix?image={image}")
        assert answer.status_code == 403
        assert answer.json()["detail"] == "image must be a scan of the studies, or uploaded, got a path elsewhere."
    # Parameters are merged into the request after its image.
    answer = http.post("/infer/dinomix?image=case_1", data={"params": json.dumps({"image": str(secret)})})
    assert answer.status_code == 403


def test_a_link_that_leads_out_of_the_studies_is_refused(client, make_folder, secret: Path, studies: Path) -> None:
    (studies / "link.nii").symlink_to(secret)
    answer = client(make_folder()).post(f"/infer/dinomix?image={studies / 'link.nii'}")
    assert answer.status_code == 403


def test_a_path_in_the_studies_and_an_uploaded_scan_are_segmented(
    client, make_folder, give_model, secret: Path, studies: Path
) -> None:
    folder = make_folder()
    give_model(folder)
    http = client(folder)
    assert http.post(f"/infer/dinomix?image={studies / 'case_1.nii'}&output=json").status_code == 200
    uploaded = http.post("/infer/dinomix?output=json", files={"file": ("mine.nii", secret.read_bytes())})
    assert uploaded.status_code == 200, uploaded.text
    assert list((folder.root / "tmp").iterdir()) == []


@pytest.mark.parametrize(
    ("url", "params", "status", "detail"),
    [
        ("/infer/dinomix?image=nobody", {}, 404, "got 'nobody', which is none"),
        ("/infer/unet?image=case_1", {}, 404, "model must be one of dinomix, got 'unet'"),
        ("/infer/dinomix?image=case_1", {"label_tag": ""}, 422, "label_tag must be a plain name, got ''"),
        ("/infer/dinomix?image=case_1", {"image": 3}, 422, "image must be the name of a scan, got a int"),
        ("/infer/dinomix?image=case_1", {"label_tag": "../../x"}, 422, "label_tag must be a plain name, got '../../x'"),
        ("/infer/dinomix?image=case_1", {"label_tag": ".."}, 422, "label_tag must be a plain name, got '..'"),
        ("/infer/dinomix?image=case_1", {"label_tag": 3}, 422, "label_tag must be a plain name, got 3"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(client, make_folder, url, params, status: int, detail: str) -> None:
    answer = client(make_folder()).post(url, data={"params": json.dumps(params)})
    assert answer.status_code == status
    assert detail in answer.json()["detail"]


@pytest.mark.parametrize(
    ("url", "detail"),
    [
        ("/activelearning/best", "strategy must be one of dinomix, random, first, got 'best'."),
        ("/train/unet", "model must be one of dinomix, got 'unet'."),
        ("/scoring/dice?run_sync=true", "method must be a scoring of the app, which has none"),
        ("/batch/infer/unet", "model must be one of dinomix, got 'unet'."),
    ],
)
def test_unknown_names_are_refused_before_a_task_begins(client, make_folder, url: str, detail: str) -> None:
    answer = client(make_folder()).post(url, json={})
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith(detail)


@pytest.mark.parametrize("body", [None, {}], ids=["MONAI Label's own", "empty"])
def test_all_unlabeled_scans_are_segmented_by_one_request(
    client, make_folder, give_model, save_label, labels: Path, studies: Path, body: dict | None
) -> None:
    folder = make_folder()
    give_model(folder)
    http = client(folder)
    save_label(http, "case_1", labels / "phantom_001.nii")
    answer = http.post("/batch/infer/dinomix?images=unlabeled&run_sync=true", json=body)
    assert answer.status_code == 200, answer.text
    assert sorted(answer.json()) == ["case_2", "case_3"]
    assert sorted(file.name for file in (studies / "labels" / "original").iterdir()) == ["case_2.nii", "case_3.nii"]
    assert http.get("/datastore/").json()["label_tags"] == {"final": 1, "original": 2}


def test_what_a_task_of_its_own_process_refuses_is_one_sentence(client, make_folder, studies: Path, capsys) -> None:
    folder = make_folder()
    client(folder)

    from dinomix_monai.label.app import DinoMixApp

    # As MONAI Label makes it for a training that nobody waits for.
    app = DinoMixApp(str(folder.root), str(studies), {})
    with pytest.raises(Refusal) as refused:
        app.train({"model": "dinomix"})
    sys.excepthook(refused.type, refused.value, refused.tb)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: Training needs at least one scan with a label of tag final, got none among 3 scans.")
