"""A model that is asked together with its frozen teacher, from training to inference."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from dinomix_monai.engines import TokenProbe
from dinomix_monai.models import probe_path

TEACHER = {"teacher#model_name": "test_vit", "teacher#layer": 0, "token_cell": [8, 8, 8]}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Weights of the probes that are asked; every probe gets a weight of 8, which no network outvotes."""
    weights: list[float] = []
    call = TokenProbe.__call__

    def choose(probe: TokenProbe, *_: object) -> dict:
        probe.weight = 8.0
        return {}

    monkeypatch.setattr(TokenProbe, "choose_weight", choose)
    monkeypatch.setattr(TokenProbe, "__call__", lambda probe, image: weights.append(probe.weight) or call(probe, image))
    return weights


def test_report_evaluation_and_inference_ask_the_teacher_and_only_then_need_its_weights(
    run: Callable, phantom: Path, teacher_file: Path, tmp_path: Path, asked: list, capsys: pytest.CaptureFixture
) -> None:
    model_file = tmp_path / "models" / "model.pt"
    run("train", run_id="training", epochs=1, teacher_weights=str(teacher_file), **TEACHER)
    assert asked == [8.0]  # the report, of one validation case; validation has the network alone
    printed = capsys.readouterr().out
    assert "a linear probe of it is asked beside the model with weight 8" in printed
    assert f"{probe_path(model_file)}  (what it asks its teacher with)" in printed
    assert probe_path(model_file).is_file()
    run("train", "evaluate", run_id="evaluating", teacher_weights=str(teacher_file))
    assert asked == [8.0] * 3  # two test cases
    image = next((phantom / "images").glob("*_006.nii*"))
    found = {}
    for name, weights in (("both", str(teacher_file)), ("alone", "none")):
        output = tmp_path / name
        given = {"model_file": str(model_file), "dataset_dir": str(image), "output_dir": str(output)}
        run("inference", kind="infer", run_id="inferring", teacher_weights=weights, **given)
        found[name] = np.asarray(nib.load(next(output.glob("*_seg.nii.gz"))).dataobj)
    assert asked == [8.0] * 4
    truth = np.asarray(nib.load(next((phantom / "labels").glob("*_006.nii*"))).dataobj)

    def liver(label: np.ndarray) -> float:
        return 2 * ((label == 6) & (truth == 6)).sum() / ((label == 6).sum() + (truth == 6).sum())

    # After three steps the network knows nothing.
    assert liver(found["both"]) > 0.2 > liver(found["alone"]) + 0.1


def test_a_model_whose_teacher_is_missing_is_refused_with_the_way_out(
    run: Callable, phantom: Path, teacher_file: Path, tmp_path: Path, asked: list
) -> None:
    run("train", epochs=1, teacher_weights=str(teacher_file), **TEACHER)
    given = {"model_file": str(tmp_path / "models" / "model.pt"), "dataset_dir": str(phantom / "images")}
    with pytest.raises(RuntimeError) as error:
        run("inference", kind="infer", run_id="inferring", teacher_weights="/none/teacher.pt", **given)
    causes = str(error.value) + str(error.value.__cause__)
    assert re.search(r"to be asked with its teacher, .*teacher_weights=none for the student alone", causes)


def test_a_teacher_may_be_asked_beside_the_model_without_teaching_it(
    run: Callable, teacher_file: Path, tmp_path: Path, asked: list
) -> None:
    trained = run("train", "ablation/probe", epochs=1, teacher_weights=str(teacher_file), **TEACHER)
    assert trained.parser.get_parsed_content("distiller") is None
    assert not (tmp_path / "tokens").exists()
    assert probe_path(tmp_path / "models" / "model.pt").is_file()
    assert asked == [8.0]


def test_an_untrained_teacher_is_not_asked(run: Callable, tmp_path: Path, asked: list) -> None:
    run("train", epochs=1)
    assert not probe_path(tmp_path / "models" / "model.pt").exists()
    assert asked == []


def test_training_draws_the_same_numbers_with_and_without_a_probe(
    run: Callable, teacher_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"epochs": 1, "teacher_weights": str(teacher_file), **TEACHER}
    for name in ("with", "without"):
        run("train", output_dir=str(tmp_path / name), **given)
        given["report#probe#_disabled_"] = True
    models = [torch.load(tmp_path / name / "models" / "model.pt", weights_only=True) for name in ("with", "without")]
    assert all(torch.equal(models[0][key], models[1][key]) for key in models[0])
