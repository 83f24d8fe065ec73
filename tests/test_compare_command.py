from __future__ import annotations

import json

import fire
import numpy as np
import pytest

from dinomix_monai.__main__ import compare
from dinomix_monai.metrics import CaseScores, Outcome, score_rule, write_scores


@pytest.fixture
def in_folders(tmp_path, monkeypatch):
    """Runs of three seeds in folders that fire would take for numbers, and the working directory beside them."""
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for folder in ("1", "2", "3", "other"):
        dice = generator.uniform(0, 1, (6, 1, 1))
        scores = [np.repeat(case, 4, axis=0) for case in dice]
        outcomes = [[Outcome.FOUND]] * 6
        write_scores(folder, [CaseScores(["bg", "liver"], score_rule("sound"), list("abcdef"), outcomes, scores)])


def command(*arguments):
    # fire reads the names of its options from the function, as the command does.
    fire.Fire({"compare": compare}, command=["compare", *arguments])


@pytest.mark.usefixtures("in_folders")
def test_folders_separated_by_commas_are_seeds(capsys):
    command("1,2,3", "other")
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == ["Dice by the sound rule, 6 cases", "A: 1, 2, 3", "B: other"]


@pytest.mark.usefixtures("in_folders")
def test_json_is_all_that_is_printed(capsys):
    command("1", "other", "--metric", "hd95_mm", "--json")
    found = json.loads(capsys.readouterr().out)
    assert (found["runs_a"], found["runs_b"], found["metric"]) == (["1"], ["other"], "hd95_mm")


@pytest.mark.usefixtures("in_folders")
def test_a_folder_without_scores_is_named():
    with pytest.raises(FileNotFoundError, match=r"folder must hold metrics\.csv.*, got 4, which does not"):
        command("1,4", "other")
