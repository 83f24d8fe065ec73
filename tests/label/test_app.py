from __future__ import annotations

import json
from pathlib import Path

import pytest


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
