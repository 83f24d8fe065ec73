from __future__ import annotations

import numpy as np
import pytest
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.fl_context import FLContext

from dinomix_monai.federated.site.privacy import GaussianPrivacy, clip_and_noise


def norm(change):
    return np.sqrt(sum((value.astype(float) ** 2).sum() for value in change.values() if value.dtype.kind == "f"))


@pytest.mark.parametrize(("clip_norm", "expected"), [(2.5, 2.5), (5, 5), (10, 5)])
def test_the_norm_over_all_weights_is_at_most_the_bound(clip_norm, expected):
    change = {"a": np.array([3.0], np.float32), "b": np.array([[0, 4.0]], np.float32), "n": np.array(7)}
    found = clip_and_noise(change, clip_norm, 0.0, np.random.default_rng(0))
    assert norm(found) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_allclose(found["a"] / found["b"][0, 1], 0.75, rtol=1e-6)
    assert found["n"] == 7
    assert found["a"].dtype == np.float32


def test_the_noise_has_the_deviation_that_was_asked_for():
    found = clip_and_noise({"a": np.zeros(100_000)}, 2.0, 0.3, np.random.default_rng(0))
    assert found["a"].std() == pytest.approx(0.6, rel=0.02)
    assert found["a"].mean() == pytest.approx(0, abs=0.01)


def run(kind, data):
    return GaussianPrivacy(1.0, 0.1).process_dxo(DXO(kind, data=data), None, FLContext())


def test_a_filter_acts_on_differences_and_lets_no_whole_weights_pass():
    found = run(DataKind.WEIGHT_DIFF, {"a": np.zeros(10, np.float32)})
    assert found.data["a"].std() > 0
    with pytest.raises(ValueError, match="transfer must be 'difference' or 'half_difference' for GaussianPrivacy"):
        run(DataKind.WEIGHTS, {"a": np.zeros(10, np.float32)})
    assert run(DataKind.WEIGHTS, {}).data == {}


def test_nothing_leaves_of_an_update_that_is_not_finite():
    change = {"a": np.ones(10, np.float32), "b": np.array([1, np.nan], np.float32)}
    assert run(DataKind.WEIGHT_DIFF, change).data == {}


def test_two_draws_differ():
    one, other = (run(DataKind.WEIGHT_DIFF, {"a": np.zeros(10)}).data["a"] for _ in range(2))
    assert not np.array_equal(one, other)


@pytest.mark.parametrize(("clip_norm", "noise"), [(0, 1), (1, -1)])
def test_settings_that_make_no_sense_are_refused(clip_norm, noise):
    with pytest.raises(ValueError, match="clip_norm must be > 0 and noise_multiplier >= 0"):
        GaussianPrivacy(clip_norm, noise)
