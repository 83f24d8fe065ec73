from __future__ import annotations

import numpy as np
import pytest

from dinomix_monai.federated.server.update_check import UpdateCheck

MODEL = {"a": np.ones((2, 2), np.float32), "n": np.array(3)}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("is_difference", [True, False])
def test_values_that_are_not_finite_are_refused(value, is_difference):
    update = {"a": np.array([[1, 1], [1, value]], np.float32)}
    assert UpdateCheck().reason_to_refuse(update, MODEL, is_difference) == "a has values that are not finite"


def test_other_shapes_and_names_are_refused():
    assert UpdateCheck().reason_to_refuse({"a": np.ones(4)}, MODEL, False) == "a must have shape (2, 2), got (4,)"
    assert UpdateCheck().reason_to_refuse({"b": np.ones(4)}, MODEL, False) == "it has b, which the model has not"


def test_the_norm_is_that_of_the_change_however_it_is_sent():
    check = UpdateCheck(norm_bound=5.0).reason_to_refuse
    # 3, 4 in two places: a norm of 5.
    change = np.array([[3, 0], [0, 4]], np.float32)
    assert check({"a": change}, MODEL, True) is None
    assert check({"a": 1 + change}, MODEL, False) is None
    assert check({"a": 1.01 * change}, MODEL, True) == "the norm of its change must be at most 5, got 5.05"
    assert check({"a": change, "n": np.array(4)}, MODEL, True) == "the norm of its change must be at most 5, got 6.403"
    assert UpdateCheck().reason_to_refuse({"a": 1e6 * change}, MODEL, True) is None


def test_some_names_alone_are_fine():
    assert UpdateCheck().reason_to_refuse({"n": np.array(4)}, MODEL, False) is None


def test_a_negative_bound_is_refused():
    with pytest.raises(ValueError, match="norm_bound must be >= 0, got -1"):
        UpdateCheck(-1)
