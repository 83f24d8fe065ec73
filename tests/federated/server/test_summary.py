from __future__ import annotations

import pytest

from dinomix_monai.federated.server.summary import Summary, federation_table, pool_case_scores, read_summary


def test_pooled_means_are_over_cases_and_not_over_sites():
    scores = {"a": {"liver": [0.9, 3], "spleen": [0.5, 1]}, "b": {"liver": [0.5, 1]}}
    found = pool_case_scores(scores)
    assert found["liver"] == pytest.approx([(3 * 0.9 + 0.5) / 4, 4])
    assert found["spleen"] == [0.5, 1]


def test_the_table_has_a_column_for_each_model_over_all_sites_and_at_each():
    before = {"a": {"liver": [0.25, 2]}, "b": {"liver": [0.75, 2], "spleen": [0.5, 1]}}
    table = federation_table(["background", "liver", "spleen"], {"before": before, "alone": {"a": {"liver": [1, 2]}}})
    assert [line.split() for line in table.splitlines()] == [
        ["class", "all", "before", "all", "alone", "a", "before", "a", "alone", "b", "before", "b", "alone"],
        ["liver", "0.500", "1.000", "0.250", "1.000", "0.750", "-"],
        ["spleen", "0.500", "-", "-", "-", "0.500", "-"],
        ["mean", "0.500", "1.000", "0.250", "1.000", "0.625", "-"],
        ["cases", "4", "2", "2", "2", "2", "0"],
    ]


def test_the_text_of_a_summary_says_what_was_compared_and_without_validation_cases_that_there_are_none(tmp_path):
    scores = {"after": {"a": {"liver": [0.25, 2]}}}
    text = str(Summary(["background", "liver"], 0.5, scores, is_whole=True))
    assert text.startswith("Dice of the global model before and after federation\nclass ")
    assert text.endswith("Best global model: 0.5000 on validation")
    text = str(Summary(["background", "liver"], None, {**scores, "alone": scores["after"]}, is_whole=True))
    assert text.startswith("Dice of the global model before and after federation, and of each site's own model alone\n")
    assert text.endswith("Best global model: no validation cases")
    assert read_summary(tmp_path) is None


def test_sites_with_different_classes_are_told_apart():
    names = ["background", "liver", "spleen"]
    scores = {"after": {"a": {"liver": [0.25, 2]}, "b": {"spleen": [0.5, 1]}}}
    text = str(Summary(names, 0.5, scores, is_whole=True, taught_by={"liver": ["a", "b"], "spleen": ["b"]}))
    rows = [line.split("  ")[-1].strip() for line in text.splitlines()[1:4]]
    assert rows == ["taught by", "a, b", "b"]
    assert "The sites have scores for different classes." in text
    same = {"after": {"a": {"liver": [0.25, 2]}, "b": {"liver": [0.5, 1]}}}
    text = str(Summary(names[:2], 0.5, same, is_whole=True, taught_by={"liver": ["a"]}))
    assert "taught by" not in text
    assert "different classes" not in text
