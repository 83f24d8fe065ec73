from __future__ import annotations

import csv
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from torch._dynamo.backends.debugging import aot_eager

from dinomix_monai.teacher import foundation_teacher
from tests.bundle.conftest import WITHOUT_REPORT


def test_training_writes_what_it_says(run, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run("train", run_id="training")
    printed = capsys.readouterr().out
    pasted = list(csv.DictReader((tmp_path / "mix.csv").open()))
    assert [row["epoch"] for row in pasted[:: 2 * 13]] == ["1", "2"]
    for name in ("models/model.pt", "models/last/state.pt", "metrics.csv", "report/index.html", "events"):
        assert str(tmp_path / name) in printed
        assert (tmp_path / name).exists()
    assert "left adrenal gland" in printed
    assert "Dice" in printed
    assert "UNTRAINED" in printed
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(rows[1][name]) > 0 for name in ("loss", "supervised", "unsupervised", "distillation"))


def test_best_model_loads_strictly_into_the_network_of_inference(run, workflow, tmp_path: Path) -> None:
    run("train", **WITHOUT_REPORT)
    network = workflow("inference", kind="infer", model_file=str(tmp_path / "models" / "model.pt")).parser
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    network.get_parsed_content("network_def").load_state_dict(weights, strict=True)
    assert network.get_parsed_content("class_names")[-1] == "left adrenal gland"


def test_report_scores_the_best_model_and_not_the_last(run, tmp_path: Path) -> None:
    trained = run("train", epochs=3)
    best = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    scored = trained.parser.get_parsed_content("report#network").state_dict()
    assert all(torch.equal(best[name], scored[name]) for name in best)


def test_evaluating_scores_the_test_cases_on_their_own_grids(run, tmp_path: Path, capsys) -> None:
    # A coarser working grid than that of the files: scores must come from the files' grid all the same.
    coarse = {"spacing_mm": [10.0, 10.0, 12.0]}
    run("train", **coarse)
    evaluation = run("train", "evaluate", run_id="evaluating", **coarse)
    with (tmp_path / "evaluation" / "metrics.csv").open() as file:
        cases = {row["case"] for row in csv.DictReader(file)}
    assert cases == {"images/phantom_006.nii", "images/phantom_007.nii"}
    outputs = evaluation.parser.get_parsed_content("validate#evaluator").state.output
    shapes = {tuple(output["pred"].shape) for output in outputs}
    assert shapes == {(1, 40, 40, 28)}


def test_labels_of_unlabeled_cases_are_never_opened(run, edited_phantom, phantom: Path, opened: list[str]) -> None:
    """From the check of the data to the report and the evaluation, though they exist and the list names them."""
    unlabeled = json.loads((phantom / "dataset.json").read_text())["unlabeled"]
    named = [{**case, "label": case["image"].replace("images", "labels")} for case in unlabeled]
    folder = edited_phantom(unlabeled=named)
    opened.clear()  # of what made the data set
    # The token cache is made anew, too.
    settings = {"dataset_dir": str(folder), "epochs": 1, "token_cache#folder": str(folder / "tokens")}
    trained = run("train", **settings)
    run("train", "evaluate", **settings)
    assert "unsupervised" in trained.parser.get_parsed_content("train#trainer").state.output
    assert [name for name in opened if any(name.endswith(case["label"]) for case in named)] == []
    # The images of the same cases were, and so were the labels of the others.
    assert all(any(name.endswith(case["image"]) for name in opened) for case in named)
    assert any("labels" in name for name in opened)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Names of all files that are opened in this process from now on."""
    names: list[str] = []
    watching = [True]

    def note(event: str, arguments: tuple) -> None:
        if watching and event == "open":
            names.append(os.fspath(arguments[0]) if isinstance(arguments[0], (str, os.PathLike)) else "")

    sys.addaudithook(note)  # there is no way to remove it
    yield names
    watching.clear()


def test_without_unlabeled_cases_training_is_supervised_with_one_warning(run, edited_phantom) -> None:
    folder = edited_phantom(unlabeled=[])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained = run("train", dataset_dir=str(folder), epochs=1, **WITHOUT_REPORT)
    assert sum("no unlabeled images" in str(warning.message) for warning in caught) == 1
    assert "unsupervised" not in trained.parser.get_parsed_content("train#trainer").state.output


def test_without_validation_cases_the_last_model_is_kept_with_a_warning(run, edited_phantom, tmp_path: Path) -> None:
    folder = edited_phantom(validation=[])
    with pytest.warns(UserWarning, match="No validation has chosen a model"):
        trained = run("train", dataset_dir=str(folder), epochs=1, **WITHOUT_REPORT)
    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    last = trained.parser.get_parsed_content("ema_teacher").module.state_dict()
    assert all(torch.equal(weights[name], last[name]) for name in weights)


def test_number_and_names_of_classes_follow_from_dataset_json(
    run, edited_phantom, phantom: Path, tmp_path: Path
) -> None:
    names = {**json.loads((phantom / "dataset.json").read_text())["labels"], "14": "duodenum"}
    folder = edited_phantom(labels=names)
    trained = run("train", dataset_dir=str(folder), epochs=1, **WITHOUT_REPORT)
    assert trained.parser.get_parsed_content("train#trainer").network.head.out_channels == 15
    assert json.loads((tmp_path / "models" / "labels.json").read_text()) == names


def test_a_resumed_run_ends_like_an_uninterrupted_one(run, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run("train", epochs=3, output_dir=str(whole), **WITHOUT_REPORT)
    first = {"train#trainer#max_epochs": 2, "epochs": 3, "output_dir": str(parts), **WITHOUT_REPORT}
    run("train", **first)
    run("train", "resume", epochs=3, output_dir=str(parts), **WITHOUT_REPORT)
    assert (whole / "history.csv").read_text() == (parts / "history.csv").read_text()
    expected, found = (torch.load(folder / "models" / "model.pt", weights_only=True) for folder in (whole, parts))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_pair_of_students_is_resumed_and_scored_like_one(run, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run("train", "baseline/cps", epochs=2, output_dir=str(whole), **WITHOUT_REPORT)
    first = {"train#trainer#max_epochs": 1, "epochs": 2, "output_dir": str(parts), **WITHOUT_REPORT}
    run("train", "baseline/cps", **first)
    run("train", "baseline/cps", "resume", epochs=2, output_dir=str(parts), **WITHOUT_REPORT)
    assert (whole / "history.csv").read_text() == (parts / "history.csv").read_text()
    run("train", "baseline/cps", "evaluate", output_dir=str(whole))
    assert (whole / "evaluation" / "metrics.csv").is_file()


def test_the_same_seed_gives_the_same_run_and_another_does_not(run, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run("train", epochs=1, seed=seed, output_dir=str(tmp_path / name), **WITHOUT_REPORT)
    a, b, c = ((tmp_path / name / "history.csv").read_text() for name in "abc")
    assert a == b != c


def test_volumes_on_disk_train_like_those_in_memory(run, tmp_path: Path) -> None:
    for name, overlays in (("memory", []), ("disk", ["memory_map"])):
        settings = {"token_cache#folder": str(tmp_path / name / "tokens"), **WITHOUT_REPORT}
        run("train", *overlays, epochs=2, output_dir=str(tmp_path / name), **settings)
    # Two labeled cases, two unlabeled ones and one for validation.
    assert len(list((tmp_path / "disk" / "volumes").glob("*.safetensors"))) == 5
    assert not (tmp_path / "memory" / "volumes").exists()
    memory, disk = ((tmp_path / name / "history.csv").read_text() for name in ("memory", "disk"))
    assert memory == disk


def test_compiled_networks_train_like_the_others(run, tmp_path: Path) -> None:
    settings = {"epochs": 2, "warm_up": 0.5, "ramp_up": 0.0, "distiller#interval": 1, **WITHOUT_REPORT}
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> Callable:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    run("train", output_dir=str(tmp_path / "plain"), **settings)
    run("train", "compile", compile_backend=backend, output_dir=str(tmp_path / "compiled"), **settings)
    assert graphs
    plain, compiled = (
        np.genfromtxt(tmp_path / name / "history.csv", delimiter=",", skip_header=1) for name in ("plain", "compiled")
    )
    np.testing.assert_allclose(compiled, plain, rtol=1e-3)
    first, second = (torch.load(tmp_path / name / "models" / "model.pt") for name in ("plain", "compiled"))
    assert first.keys() == second.keys()


def test_the_configuration_that_a_run_leaves_repeats_it(run, tmp_path: Path) -> None:
    run("train", epochs=1, seed=3, output_dir=str(tmp_path / "first"), **WITHOUT_REPORT)
    (written,) = (tmp_path / "first" / "logs").glob("training-*.json")
    again = ConfigWorkflow(str(written), logging_file=False, output_dir=str(tmp_path / "again"))
    again.initialize()
    again.run()
    first, second = ((tmp_path / name / "history.csv").read_text() for name in ("first", "again"))
    assert first == second


@pytest.mark.parametrize("overlay", ["ablation/pic", "baseline/supervised", "baseline/cps"])
def test_where_no_teacher_is_used_none_is_looked_for(run, edited_phantom, tmp_path, monkeypatch, overlay) -> None:
    folder = edited_phantom()
    datalist = json.loads((folder / "dataset.json").read_text())
    # On data of somebody's own a teacher that cannot be had is an error.
    del datalist["phantom_seed"]
    (folder / "dataset.json").write_text(json.dumps(datalist))
    asked = []
    monkeypatch.setattr(foundation_teacher, "hub_file", lambda *arguments: asked.append(arguments))
    trained = run("train", overlay, dataset_dir=str(folder), teacher_weights="auto", epochs=1)
    assert asked == []
    assert trained.parser.get_parsed_content("teacher") is None
    assert trained.parser.get_parsed_content("distiller") is None
    state = torch.load(tmp_path / "models" / "last" / "state.pt", weights_only=True)
    assert state["teacher"] is None
    assert json.loads((tmp_path / "run.json").read_text())["teacher"] == "none"
