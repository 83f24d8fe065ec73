from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dinomix_monai.engines import TokenProbe
from dinomix_monai.label import TrainingRun
from dinomix_monai.models import probe_path
from tests.label.conftest import SETTINGS


def stamp_of(file: Path) -> tuple[int, int]:
    """What changes when a file is written or another one is moved to its place."""
    stat = file.stat()
    return stat.st_ino, stat.st_mtime_ns


def test_a_training_learns_from_labeled_and_unlabeled_scans_and_its_model_segments(
    client, make_folder, save_label, train, labels: Path
) -> None:
    folder = make_folder()
    http = client(folder)
    save_label(http, "case_1", labels / "phantom_001.nii")
    save_label(http, "case_3", labels / "phantom_003.nii", tag="original")
    result = train(http, max_epochs=2)
    assert (result["labeled"], result["unlabeled"], result["validation"]) == (1, 2, 0)
    assert result["replaced"]
    assert any("lists one labeled case" in warning for warning in result["warnings"])
    listed = json.loads((Path(result["run"]) / "dataset.json").read_text())
    # What a model has proposed is no label.
    assert [Path(case["image"]).name for case in listed["unlabeled"]] == ["case_2.nii", "case_3.nii"]
    stats = http.get("/info/").json()["train_stats"]["dinomix"]
    assert [row["epoch"] for row in stats["epochs"]] == [1, 2]
    assert all(row["unsupervised"] > 0 for row in stats["epochs"][1:])
    assert stats["result"]["replaced"]
    assert http.post("/infer/dinomix?image=case_2&output=json").status_code == 200


def test_a_training_with_a_teacher_leaves_its_probe_beside_the_model(
    client, make_folder, save_label, train, labels: Path, teacher_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def choose(probe: TokenProbe, *_: object) -> dict:
        probe.weight = 0.5
        return {}

    monkeypatch.setattr(TokenProbe, "choose_weight", choose)
    model = {"teacher#model_name": "test_vit", "teacher#layer": 0}
    folder = make_folder(teacher_weights=str(teacher_file), settings={**SETTINGS, **model})
    http = client(folder)
    for number in (1, 2):
        save_label(http, f"case_{number}", labels / f"phantom_00{number}.nii")
    share = between(*(hash_share(f"case_{number}") for number in (1, 2)))
    assert train(http, max_epochs=1, val_split=share)["validation"] == 1
    assert probe_path(folder.model_file).is_file()
    asked = []
    monkeypatch.setattr(TokenProbe, "__call__", lambda probe, image: asked.append(probe.weight) or torch.zeros(1))
    assert http.post("/infer/dinomix?image=case_3&output=json").status_code == 200
    assert asked == [0.5]
    # Without validation there is no probe, and that of the model before goes with it.
    assert train(http, max_epochs=1, val_split=0)["replaced"]
    assert not probe_path(folder.model_file).exists()
    assert http.post("/infer/dinomix?image=case_3&output=json").status_code == 200
    assert asked == [0.5]


def test_a_training_goes_on_from_the_model_or_begins_anew(
    client, make_folder, give_model, save_label, train, labels: Path
) -> None:
    folder = make_folder(settings={**TOY_STILL, "network_def#n_filters": 4})
    http = client(folder)
    save_label(http, "case_1", labels / "phantom_001.nii")
    give_model(folder, seed=7)
    before = torch.load(folder.model_file, weights_only=True)
    train(http)
    after = torch.load(folder.model_file, weights_only=True)
    # With a learning rate of 0 the weights are those that it began with.
    assert all(torch.equal(before[name], after[name]) for name in before)
    train(http, pretrained=False)
    anew = torch.load(folder.model_file, weights_only=True)
    assert any(not torch.equal(before[name], anew[name]) for name in before)


TOY_STILL = {
    "patch_size": [32, 32, 16],
    "spacing_mm": [8.0, 8.0, 10.0],
    "steps_per_epoch": 1,
    "learning_rate": 0.0,
    "amp": False,
}


def test_a_model_that_validation_finds_worse_does_not_replace_the_old_one(
    client, make_folder, give_model, save_label, train, labels: Path
) -> None:
    # With a learning rate of 0 the new model is as good as the old one, and not better.
    folder = make_folder(settings=TOY_STILL)
    http = client(folder)
    for number in (1, 2):
        save_label(http, f"case_{number}", labels / f"phantom_00{number}.nii")
    give_model(folder)
    stamp = stamp_of(folder.model_file)
    share = between(*(hash_share(f"case_{number}") for number in (1, 2)))
    result = train(http, val_split=share)
    assert (result["labeled"], result["validation"]) == (1, 1)
    assert result["score"] == result["score_before"]
    assert not result["replaced"]
    assert stamp_of(folder.model_file) == stamp


def hash_share(name: str) -> float:
    import hashlib

    return int(hashlib.sha256(name.encode()).hexdigest()[:16], 16) / 2**64


def between(a: float, b: float) -> float:
    return (a + b) / 2


def test_a_better_model_replaces_the_old_one(
    client, make_folder, give_model, save_label, train, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder()
    http = client(folder)
    for number in (1, 2):
        save_label(http, f"case_{number}", labels / f"phantom_00{number}.nii")
    give_model(folder)
    # A model that finds nothing at all.
    weights = torch.load(folder.model_file, weights_only=True)
    weights["head.weight"].zero_()
    weights["head.bias"].zero_()
    torch.save(weights, folder.model_file)
    result = train(http, val_split=between(*(hash_share(f"case_{number}") for number in (1, 2))), max_epochs=2)
    assert result["score_before"] == 0
    assert result["replaced"] == (result["score"] > 0)


def test_a_wrong_label_in_the_folder_is_named_and_the_model_stays(
    client, make_folder, give_model, save_label, train, labels: Path, edited, studies: Path
) -> None:
    folder = make_folder()
    http = client(folder)
    give_model(folder)
    stamp = stamp_of(folder.model_file)
    for number in (1, 2):
        save_label(http, f"case_{number}", labels / f"phantom_00{number}.nii")
    # As somebody may replace it by hand, past the door.
    wrong = edited(labels / "phantom_002.nii", lambda label: np.where(label == 1, 77, label).astype(np.uint8))
    shutil.copy(wrong, studies / "labels" / "final" / "case_2.nii")
    detail = train(http, status=422)["detail"]
    assert "labels/final/case_2.nii" in detail
    assert "voxels of no class, from 77 to 77" in detail
    assert "case_1" not in detail
    assert stamp_of(folder.model_file) == stamp
    assert list(folder.runs.iterdir()) == []


def test_without_a_label_the_answer_says_what_to_do(client, make_folder, train) -> None:
    detail = train(client(make_folder()), status=422)["detail"]
    assert detail == (
        "Training needs at least one scan with a label of tag final, got none among 3 scans. Save one, and train again."
    )


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_epochs": 0}, "max_epochs must be >= 1, got 0"),
        ({"max_epochs": "many"}, "max_epochs, seed and val_split must be numbers"),
        ({"pretrained": "maybe"}, "pretrained true or false"),
        ({"pretrained": 1}, "pretrained true or false"),
        ({"device": 3}, "device a name"),
        ({"val_split": 1.0}, r"val_split must be in [0, 1), got 1.0"),
        ({"val_split": 0.999}, "all for validation with val_split 0.999"),
    ],
)
def test_wrong_parameters_are_refused(
    client, make_folder, save_label, train, labels: Path, params: dict, message: str
) -> None:
    folder = make_folder()
    http = client(folder)
    save_label(http, "case_1", labels / "phantom_001.nii")
    assert message in train(http, status=422, **params)["detail"]
    assert not list(folder.runs.iterdir())


def test_a_model_of_other_classes_can_only_be_replaced(
    client, make_folder, give_model, save_label, train, labels: Path, edited
) -> None:
    folder = make_folder()
    give_model(folder)
    # As a person would change the classes of an app.
    names = ["background", "everything"]
    folder.model_file.with_name("labels.json").write_text(json.dumps(dict(enumerate(names))))
    http = client(folder)
    file = edited(labels / "phantom_001.nii", lambda label: (label > 0).astype(np.uint8))
    save_label(http, "case_1", file)
    assert "Train anew, with pretrained false" in train(http, status=422)["detail"]
    anew = train(http, pretrained=False)
    assert anew["replaced"]
    assert not any("everything" in warning for warning in anew["warnings"])
    weights = torch.load(folder.model_file, weights_only=True)
    assert weights["head.bias"].shape[0] == 2


def test_a_training_that_fails_leaves_the_model_as_it_was(
    make_folder, give_model, studies: Path, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_folder()
    give_model(folder)
    stamp = stamp_of(folder.model_file)
    run = TrainingRun(
        folder, [{"name": "case_1", "image": str(studies / "case_1.nii"), "label": str(labels / "phantom_001.nii")}], []
    )
    monkeypatch.setattr(os, "fsync", broken_disk)
    with pytest.raises(RuntimeError):
        run(epochs=1)
    assert stamp_of(folder.model_file) == stamp


def broken_disk(file: int) -> None:
    raise RuntimeError("no space left")


def test_no_scan_that_was_learned_from_judges_a_later_model(make_folder, studies: Path) -> None:
    names = [f"scan_{number}.nii" for number in range(40)]
    cases = [{"name": name, "image": name, "label": name} for name in names]
    for share in (0.2, 0.6):
        folder = make_folder()
        few, all_ = (TrainingRun(folder, part, [], share) for part in (cases[:10], cases))
        chosen = {case["image"] for case in all_.validation}
        assert {case["image"] for case in few.validation} == chosen & set(names[:10])
        assert abs(len(chosen) / 40 - share) < 0.25
        assert not chosen & {case["image"] for case in all_.training}


def test_scans_are_told_apart_by_their_names_in_the_studies(
    client, make_folder, save_label, train, labels: Path, studies: Path, tmp_path: Path
) -> None:
    for number in (1, 2):
        elsewhere = tmp_path / str(number) / "image.nii"
        elsewhere.parent.mkdir()
        (studies / f"case_{number}.nii").rename(elsewhere)
        (studies / f"case_{number}.nii").symlink_to(elsewhere)
    http = client(make_folder())
    for number in (1, 2):
        save_label(http, f"case_{number}", labels / f"phantom_00{number}.nii")
    result = train(http, val_split=between(*(hash_share(f"case_{number}") for number in (1, 2))))
    assert (result["labeled"], result["validation"]) == (1, 1)


def test_what_training_does_not_know_is_said(client, make_folder, save_label, train, labels: Path) -> None:
    http = client(make_folder())
    save_label(http, "case_1", labels / "phantom_001.nii")
    known = "device, pretrained, max_epochs, val_split, seed"
    result = train(http, client_id="viewer", epochs=2)
    assert f"Training can be given {known}, and has left out epochs." in result["warnings"]
    assert "client_id" not in str(train(http, client_id="viewer")["warnings"])


def test_an_app_without_a_model_plans_its_settings_and_keeps_them(
    client, make_folder, save_label, train, labels: Path, studies: Path, capsys: pytest.CaptureFixture
) -> None:
    given = {"network_def#n_filters": 4, "steps_per_epoch": 2, "amp": False, "flip_prob": [0.0, 0.0, 0.5]}
    folder = make_folder(settings=given)
    http = client(folder)
    # As a viewer may, before there is a model: what it has seen of the settings then is not what counts later.
    http.post("/infer/dinomix?image=case_2&output=json")
    save_label(http, "case_1", labels / "phantom_001.nii")
    train(http)
    settings = json.loads(folder.settings_file.read_text())
    assert (settings["spacing_mm"], settings["patch_size"]) == ([8.0, 8.0, 10.0], [32, 32, 16])
    assert settings["network_def#strides"][-1] == [2, 2, 1]
    assert "intensity_window" in settings
    # The reasons stay with them, and are in the server's log.
    assert "The scans' median" in settings["_desc_"]["spacing_mm"]
    printed = capsys.readouterr().out
    assert (
        f"Settings by the labels of this first training, kept in {folder.settings_file}:\nspacing_mm: [8.0" in printed
    )
    (result,) = (json.loads(file.read_text()) for file in folder.runs.glob("*/result.json"))
    assert any("may be missed" in warning for warning in result["warnings"])
    # What is given stays, and the length of a training is what its request says.
    assert settings["flip_prob"] == given["flip_prob"]
    assert "flip_prob" not in settings["_desc_"]
    assert "epochs" not in settings
    answer = http.post("/infer/dinomix?image=case_2&output=json")
    assert answer.status_code == 200, answer.text
    parser = folder.bundle.parser("inference")
    assert parser.get_parsed_content("inferer#inferer").roi_size == [32, 32, 16]
    save_label(http, "case_2", labels / "phantom_002.nii")
    train(http)
    assert json.loads(folder.settings_file.read_text()) == settings
