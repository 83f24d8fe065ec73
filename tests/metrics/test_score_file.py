from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from dinomix_monai.metrics import CaseScores, read_scores, score_rule, write_scores

HEADER = "rule,grid,case,class,outcome,dice,nsd_2mm,assd_mm,hd95_mm"


def scored(rule="sound", names=("background", "liver", "gallbladder")):
    """Liver in place; gallbladder missed in the first case and invented in the second."""
    liver = torch.zeros(1, 8, 8, 8, dtype=torch.int64)
    liver[0, 1:4, 1:4, 1:4] = 1
    both = liver.clone()
    both[0, 5:7, 5:7, 5:7] = 2
    scores = CaseScores(names, score_rule(rule))
    scores.add("a.nii", liver, both, (1, 1, 1))
    scores.add("b.nii", both, liver, (1, 1, 1))
    return scores


def test_there_is_a_row_for_each_case_and_class_that_names_its_rule(tmp_path):
    path = write_scores(tmp_path / "new folder", [scored()])
    assert path == tmp_path / "new folder" / "metrics.csv"
    assert path.read_text().splitlines() == [
        HEADER,
        "sound,file,a.nii,liver,found,1,1,0,0",
        "sound,file,a.nii,gallbladder,missed,0,0,13.8564,13.8564",  # 8 times the root of 3
        "sound,file,b.nii,liver,found,1,1,0,0",
        "sound,file,b.nii,gallbladder,invented,,,,",
    ]


def test_several_rules_share_the_file_and_not_their_columns(tmp_path):
    path = write_scores(tmp_path, [scored(), scored("published")])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rule"] for row in rows] == ["sound"] * 4 + ["published"] * 4
    assert list(rows[0]) == [*HEADER.split(","), "dice_percent", "asd_voxels"]
    assert [rows[1]["dice"], rows[1]["dice_percent"]] == ["0", ""]
    assert [rows[5]["dice"], rows[5]["dice_percent"], rows[5]["asd_voxels"]] == ["", "0", "128"]


@pytest.mark.parametrize("rule", ["sound", "published", "galoss"])
def test_what_was_written_is_read(tmp_path, rule):
    write_scores(tmp_path, [scored(name) for name in ("galoss", "sound", "published")])
    read, written = read_scores(tmp_path, rule), scored(rule)
    assert read.rule is written.rule
    assert (read.class_names, read.cases) == (list(written.class_names), written.cases)
    assert read.outcomes == written.outcomes
    np.testing.assert_allclose(read.scores, written.scores, rtol=1e-5)


def test_the_grid_is_remembered_and_said(tmp_path):
    scores = scored()
    assert "original scans" not in scores.table()
    scores.grid = "scan"
    write_scores(tmp_path, [scores])
    read = read_scores(tmp_path, "sound")
    assert read.grid == "scan"
    assert "(the grids are those of the original scans)" in read.table().splitlines()[0]


def test_a_folder_without_the_file_is_refused(tmp_path):
    message = "folder must hold metrics.csv, which training and evaluating write, got .*, which does not"
    with pytest.raises(FileNotFoundError, match=message):
        read_scores(tmp_path, "sound")


def test_another_file_is_refused(tmp_path):
    (tmp_path / "metrics.csv").write_text("case,class,dice\na.nii,liver,1\n")
    message = (
        r"metrics.csv must have the columns rule, grid, case, class, outcome, got none named rule, grid, outcome\."
    )
    with pytest.raises(ValueError, match=message):
        read_scores(tmp_path, "sound")


def test_a_rule_that_was_not_scored_by_is_refused(tmp_path):
    write_scores(tmp_path, [scored(), scored("galoss")])
    message = r"rule must be one by which .*metrics.csv was scored \(sound, galoss\), got published"
    with pytest.raises(ValueError, match=message):
        read_scores(tmp_path, "published")


def test_cases_of_the_same_name_are_refused(tmp_path):
    twice = scored()
    twice.cases[1] = "a.nii"
    write_scores(tmp_path, [twice])
    message = "every class of every case once, got 4 rows for 1 case names and 2 classes. List each case"
    with pytest.raises(ValueError, match=message):
        read_scores(tmp_path, "sound")


def test_a_missing_row_is_refused(tmp_path):
    path = write_scores(tmp_path, [scored()])
    path.write_text("\n".join(path.read_text().splitlines()[:-1]))
    with pytest.raises(ValueError, match="every class of every case once, got 3 rows for 2 case names and 2 classes"):
        read_scores(tmp_path, "sound")
