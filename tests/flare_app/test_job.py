from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dinomix_monai.federated.recipe import build_recipe, continued_run
from dinomix_monai.federated.server.controller import FederatedController
from dinomix_monai.run import run_command_line

ROOT = Path(__file__).parents[2]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "flare_app"))
    return __import__("job")


@pytest.fixture
def typed(job: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs ``python flare_app/job.py WORDS`` in this process."""

    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["job.py", *words])
        run_command_line(job.main, name="job.py")

    return run


@pytest.fixture
def made(job: ModuleType, monkeypatch: pytest.MonkeyPatch) -> dict:
    """What the job was made of and where it would have run, instead of a run."""
    seen: dict = {}
    monkeypatch.setattr(job, "build_recipe", lambda **options: seen.update(options))
    monkeypatch.setattr(job, "run_recipe", lambda *arguments: seen.update(run=arguments) or seen.get("is_good", True))
    return seen


def test_help_lists_every_option_with_type_and_default(job, typed, capfd):
    with pytest.raises(SystemExit) as end:
        typed("--help")
    assert end.value.code == 0
    text = "".join(capfd.readouterr())
    parameters = inspect.signature(job.main).parameters
    assert all(f"--{name}=" in text for name in parameters)
    assert text.count("Type: ") == text.count("Default: ") == len(parameters)


def test_options_have_the_defaults_of_what_they_are_for(job):
    ours = inspect.signature(job.main).parameters
    theirs = {**inspect.signature(FederatedController).parameters, **inspect.signature(build_recipe).parameters}
    # Those of the network are chosen for the phantom, and the overlays may be one name.
    same = ours.keys() & theirs.keys() - {"settings", "overlays"}
    assert {name: ours[name].default for name in same} == {name: theirs[name].default for name in same}
    assert len(same) >= 15


def test_what_is_typed_comes_to_the_job(typed, made, tmp_path):
    words = ["--rounds=3", "--overlays=acdc", "--min_responses=1", "--nocompare_alone", "--dataset_dir=/data"]
    with pytest.raises(SystemExit) as end:
        typed(*words, "--workspace", str(tmp_path), "--settings", "{'steps_per_epoch': 5}")
    assert end.value.code == 0
    assert (made["num_rounds"], made["overlays"], made["min_responses"]) == (3, ("acdc",), 1)
    assert made["compare_alone"] is False
    assert made["settings"] == {"steps_per_epoch": 5}
    assert made["arguments"][-2:] == ["--dataset_dir", "/data"]
    assert made["run"][1].workspace_root == str(tmp_path)


def test_a_run_that_has_not_come_to_its_end_has_an_exit_code(typed, made):
    made["is_good"] = False
    with pytest.raises(SystemExit) as end:
        typed("--rounds", "1")
    assert end.value.code == 1


def test_the_classes_are_those_of_a_data_set(typed, made, tmp_path):
    content = {"labels": {"0": "background", "1": "heart"}, "training": [{"image": "a.nii", "label": "b.nii"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        typed("--labels", str(tmp_path / "dataset.json"))
    assert list(made["class_names"]) == ["background", "heart"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--round", "3"), r"--round must be an option of this command.* Did you mean rounds\?"),
        (("--rounds", "many"), "--rounds must be a whole number, got 'many'"),
        (("--rounds", "0"), "rounds must be more than the 0 that are done, got 0"),
        (("--env", "foo"), "env must be sim, poc or prod, got 'foo'"),
        (("--env", "prod"), "startup_kit must be given with --env prod"),
        (("--detach",), "detach must go with --env prod"),
        (("--min_responses", "3"), "min_responses must be 0 to 2, the number of sites, got 3"),
        (("--transfer", "diff"), "transfer must be one of full, difference, half_difference, got 'diff'"),
        (("--clip_norm", "1"), "transfer must be difference or half_difference with clip_norm, got full"),
        (("--noise_multiplier", "1"), "clip_norm must be given with noise_multiplier"),
    ],
)
def test_a_mistake_is_told_before_anything_runs(typed, words, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        typed(*words)
    assert list(tmp_path.iterdir()) == []


def test_a_run_goes_on_from_a_copy_of_the_model_with_the_round_that_stands_in_it(tmp_path):
    model = tmp_path / "FL_global_model.pt"
    torch.save({"model": {}, "meta_props": {"class_names": ["background"], "next_round": 3, "rounds": 9}}, model)
    kept, *rounds = continued_run(model, tmp_path / "ws")
    assert (Path(kept), rounds) == (tmp_path / "ws" / "continued_from.pt", [3, 9])
    assert continued_run(model, tmp_path / "ws", rounds=12)[1:] == (3, 12)
    assert Path(kept).read_bytes() == model.read_bytes()
    assert continued_run("/at/the/server.pt", tmp_path, 2, 5, is_elsewhere=True) == ("/at/the/server.pt", 2, 5)
    with pytest.raises(ValueError, match="rounds must be given where the model is at a server elsewhere"):
        continued_run("/at/the/server.pt", tmp_path, 2, is_elsewhere=True)
    with pytest.raises(FileNotFoundError, match=r"which is no file\. For a file at a server elsewhere give --env prod"):
        continued_run(tmp_path / "none.pt", tmp_path, 2)
