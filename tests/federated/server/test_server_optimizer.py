from __future__ import annotations

import numpy as np
import pytest
import torch

from dinomix_monai.federated.server.server_optimizer import ServerOptimizer


def test_the_default_is_plain_averaging():
    model = {"w": np.array([1.0, 2.0], np.float32), "n": np.array(3)}
    average = {"w": np.array([1.5, 1.0], np.float32), "n": np.array(4.6)}
    found = ServerOptimizer().step(model, average, False)
    np.testing.assert_array_equal(found["w"], average["w"])
    assert found["n"] == 5
    assert found["n"].dtype == model["n"].dtype
    changed = ServerOptimizer().step(model, {"w": np.array([0.5, -1.0])}, True)
    np.testing.assert_array_equal(changed["w"], [1.5, 1.0])
    assert changed["n"] == 3
    assert changed["w"].dtype == np.float32


@pytest.mark.parametrize(("learning_rate", "momentum"), [(1.0, 0.9), (0.3, 0.0), (0.5, 0.5)])
def test_it_is_torchs_sgd_on_the_negative_change(learning_rate, momentum):
    generator = np.random.default_rng(0)
    parameter = torch.nn.Parameter(torch.from_numpy(generator.normal(size=5)))
    reference = torch.optim.SGD([parameter], lr=learning_rate, momentum=momentum)
    optimizer, model = ServerOptimizer(learning_rate, momentum), {"w": parameter.detach().numpy().copy()}
    for _ in range(4):
        change = generator.normal(size=5)
        parameter.grad = torch.from_numpy(-change)
        reference.step()
        model = optimizer.step(model, {"w": change}, True)
        np.testing.assert_allclose(model["w"], parameter.detach().numpy())


def test_running_statistics_are_averaged_whatever_the_settings():
    model = {"bn.running_var": np.array([1.0])}
    found = ServerOptimizer(10.0, 0.9).step(model, {"bn.running_var": np.array([0.5])}, False)
    assert found["bn.running_var"] == 0.5


@pytest.mark.parametrize(("learning_rate", "momentum"), [(0, 0), (1, 1), (1, -0.1)])
def test_settings_that_make_no_sense_are_refused(learning_rate, momentum):
    with pytest.raises(ValueError, match=r"learning_rate must be > 0 and momentum in \[0, 1\)"):
        ServerOptimizer(learning_rate, momentum)
