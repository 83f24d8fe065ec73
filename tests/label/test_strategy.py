from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.inferers import SimpleInferer
from monai.networks.nets import BasicUNet
from torch import nn

from dinomix_monai.engines import WindowInferer
from dinomix_monai.label.app import DinoMixApp
from dinomix_monai.label.assessment import Assessment, Assessments, ScanAssessor
from dinomix_monai.label.next_case import dice_shortfall, mean_entropy
from dinomix_monai.selection import next_scans


@pytest.fixture
def assess(make_folder):
    """Writes what the current model is to have found."""

    def write(folder, counts: list[int], **scans: tuple[list[float], list[float]]) -> None:
        found = {name: Assessment(shortfalls, 0.0, features) for name, (shortfalls, features) in scans.items()}
        Assessments(folder.model_stamp, counts, found).write(folder)

    return write


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


def test_scoring_assesses_every_scan_once_and_counts_labeled_voxels(
    client, make_folder, give_model, save_label, phantom: Path
) -> None:
    folder = make_folder()
    http = client(folder)
    refused = http.post("/scoring/dinomix?run_sync=true", json={})
    assert refused.status_code == 409
    assert "Assessing scans needs a model" in refused.json()["detail"]
    give_model(folder)
    label = phantom / "labels" / "phantom_002.nii"
    save_label(http, "case_2", label)
    assert http.post("/scoring/dinomix?run_sync=true", json={}).json() == {"assessed": ["case_1", "case_2", "case_3"]}
    assert http.post("/scoring/dinomix?run_sync=true", json={}).json() == {"assessed": []}
    known = Assessments.read(folder)
    import nibabel as nib

    assert known.counts == np.bincount(np.asarray(nib.load(label).dataobj).ravel(), minlength=14)[1:].tolist()
    assert all(0 < value < 1 for value in known.scans["case_1"].shortfalls)
    assert known.scans["case_1"].features != known.scans["case_3"].features


def test_what_cannot_be_read_does_not_keep_the_others_from_being_assessed(
    client, make_folder, give_model, save_label, phantom: Path, studies: Path
) -> None:
    import nibabel as nib

    (studies / "case_1.nii").write_bytes(b"damaged")
    volume = np.full((40, 40, 28), np.nan, dtype=np.float32)
    nib.save(nib.Nifti1Image(volume, nib.load(studies / "case_2.nii").affine), studies / "case_2.nii")
    folder = make_folder()
    give_model(folder)
    http = client(folder)
    save_label(http, "case_3", phantom / "labels" / "phantom_003.nii")
    next((studies / "labels" / "final").glob("case_3*")).write_bytes(b"damaged")
    assert http.post("/scoring/dinomix?run_sync=true", json={}).json() == {"assessed": ["case_3"]}
    known = Assessments.read(folder)
    assert known.unreadable == ["case_1", "case_2"]
    assert known.counts == [0] * 13
    assert http.post("/scoring/dinomix?run_sync=true", json={}).json() == {"assessed": []}


def test_a_model_that_comes_during_the_scoring_takes_over(client, make_folder, give_model, monkeypatch) -> None:
    folder = make_folder()
    give_model(folder)
    http = client(folder)
    assess, calls = ScanAssessor.__call__, []

    def replaced_after_the_first(self: ScanAssessor, image: torch.Tensor) -> object:
        calls.append(next(self.teacher.parameters()).sum().item())
        if len(calls) == 1:
            give_model(folder, seed=1)
        return assess(self, image)

    monkeypatch.setattr(ScanAssessor, "__call__", replaced_after_the_first)
    assert http.post("/scoring/dinomix?run_sync=true", json={}).json() == {"assessed": ["case_1", "case_2", "case_3"]}
    assert len(calls) == 4
    assert calls[0] != calls[1] == calls[2] == calls[3]
    assert len(Assessments.read(folder).scans) == 3


def test_scoring_is_started_only_where_there_is_something_to_assess(
    make_folder, give_model, assess, studies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder()
    app = DinoMixApp(str(folder.root), str(studies), {})
    started = []
    monkeypatch.setattr("monailabel.interfaces.app.MONAILabelApp.async_scoring", lambda *_: started.append(1))
    app.async_scoring(None)
    assert not started
    give_model(folder)
    app.async_scoring(None)
    assert len(started) == 1
    entry = ([0.5] * 13, [1.0])
    assess(folder, [1] * 13, case_1=entry, case_2=entry, case_3=entry)
    app.async_scoring(None)
    assert len(started) == 1
    give_model(folder)
    monkeypatch.setattr("monailabel.utils.async_tasks.utils.background_processes", {"scoring": {"task": object()}})
    app.async_scoring(None)
    assert len(started) == 1


def test_an_assessment_is_that_of_its_parts() -> None:
    torch.manual_seed(0)
    student, teacher = (BasicUNet(features=(4, 4, 4, 4, 4, 4), out_channels=3).eval() for _ in range(2))
    image = torch.rand(1, 32, 32, 32)
    found = ScanAssessor(student, teacher, SimpleInferer(), "conv_0")(image)
    with torch.no_grad():
        p, q = (network(image[None])[0].softmax(0) for network in (student, teacher))
        features = student.conv_0(image[None])[0].mean(dim=[1, 2, 3])
    assert found.shortfalls == dice_shortfall(p, q)[1:].tolist()
    assert found.entropy == mean_entropy(q)
    np.testing.assert_allclose(found.features, features, rtol=1e-5)
    with pytest.raises(ValueError, match="module must name one of the student's, got 'nowhere'"):
        ScanAssessor(student, teacher, SimpleInferer(), "nowhere")


def test_without_its_student_a_model_is_compared_with_itself(make_folder, give_model) -> None:
    folder = make_folder()
    give_model(folder)
    assessor = ScanAssessor.of_app(folder)
    assert all(torch.equal(a, b) for a, b in zip(assessor.student.parameters(), assessor.teacher.parameters()))
    # The networks alone: a frozen teacher would say the same beside both.
    assert isinstance(assessor.inferer, WindowInferer)
    student: nn.Module = folder.bundle.parser("inference").get_parsed_content("network_def")
    torch.save(student.state_dict(), folder.student_file)
    assessor = ScanAssessor.of_app(folder)
    assert all(torch.equal(a, b) for a, b in zip(assessor.student.parameters(), student.parameters()))
    assert any(not torch.equal(a, b) for a, b in zip(assessor.student.parameters(), assessor.teacher.parameters()))


def test_assessments_of_another_model_or_other_classes_are_not_used(make_folder, give_model, assess) -> None:
    folder = make_folder(labels=["a", "b"])
    give_model(folder)
    assess(folder, [3, 4], case_1=([0.1, 0.2], [1.0]))
    assert Assessments.read(folder).counts == [3, 4]
    content = json.loads(folder.scores_file.read_text())
    folder.scores_file.write_text(json.dumps({**content, "counts": [3]}))
    assert Assessments.read(folder) == Assessments(folder.model_stamp, [0, 0], {})
    folder.scores_file.write_text(json.dumps({**content, "stamp": 1}))
    assert Assessments.read(folder).scans == {}
