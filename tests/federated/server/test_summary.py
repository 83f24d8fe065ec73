from __future__ import annotations

import pytest

from dinomix_monai.federated.server.summary import federation_table, pool_case_scores


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
