from __future__ import annotations

import numpy as np
import pytest

from dinomix_monai.federated.server.class_rows import ClassRows

AXES = {"head.weight": 1, "head.bias": 0}
MODEL = {
    "stem": np.zeros(2, np.float32),
    "head.weight": np.zeros((2, 3), np.float32),
    "head.bias": np.zeros(3, np.float32),
}


def update(value):
    return {name: np.full_like(array, value) for name, array in MODEL.items()}


def average(*updates):
    names = {name for each in updates for name in each}
    return {name: np.mean([each[name] for each in updates if name in each], axis=0) for name in names}


@pytest.mark.parametrize("is_difference", [False, True])
def test_a_row_is_averaged_over_the_sites_that_know_its_class(is_difference):
    rows = ClassRows(AXES, {"north": {0, 1}, "south": {0}})
    found = average(rows.split(update(1.0), "north"), rows.split(update(3.0), "south"))
    model = {name: array + 7 for name, array in MODEL.items()}
    joined = rows.join(found, model, is_difference)
    assert {name: value.shape for name, value in joined.items()} == {name: value.shape for name, value in MODEL.items()}
    assert joined["stem"].tolist() == [2, 2]
    # Nobody has sent the last one.
    expected = [2, 1, 0 if is_difference else 7]
    assert joined["head.bias"].tolist() == expected
    assert joined["head.weight"].tolist() == [expected, expected]
    assert model["head.bias"].tolist() == [7, 7, 7]


def test_a_site_that_is_not_named_knows_all_classes():
    rows = ClassRows(AXES, {"north": {0, 1}})
    split = rows.split(update(1.0), "without labels")
    assert len(split) == 1 + 2 * 3
    assert rows.join(split, MODEL, False)["head.weight"].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_weights_that_were_not_sent_stay_out_of_the_average():
    rows = ClassRows(AXES, {"north": {0, 1}})
    assert rows.split({"stem": MODEL["stem"]}, "north").keys() == {"stem"}
    assert rows.join({}, MODEL, False) == {}
