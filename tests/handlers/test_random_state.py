from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine, Events
from monai.transforms import RandGaussianNoise

from dinomix_monai.handlers import EpochSeedHandler


def draws(seed, epochs, before=0, transforms=2):
    """For each epoch, a number from torch and one from each transform, after some number of draws before the run."""
    items = [RandGaussianNoise(prob=1.0) for _ in range(transforms)]
    torch.manual_seed(before)
    engine, found = Engine(lambda engine, batch: None), {}
    EpochSeedHandler(seed, [*items, None]).attach(engine)

    @engine.on(Events.ITERATION_COMPLETED)
    def draw(engine):
        found.setdefault(engine.state.epoch, []).extend([torch.rand(1).item(), *(i.R.random_sample() for i in items)])

    engine.state.epoch = epochs[0] - 1
    engine.state.iteration = engine.state.epoch * 2
    engine.state.max_epochs, engine.state.epoch_length = epochs[-1], 2
    engine.run([0, 0])
    return found


def test_an_epoch_draws_the_same_whether_the_run_is_resumed_before_it_or_not():
    whole, resumed = draws(5, [1, 2, 3]), draws(5, [3], before=11)
    assert list(whole) == [1, 2, 3]
    assert resumed == {3: whole[3]}


def test_epochs_seeds_and_transforms_draw_differently():
    values = [value for seed in (0, 1, 2) for epoch in draws(seed, [1, 2, 3]).values() for value in epoch]
    assert len(set(values)) == len(values) == 3 * 3 * 2 * 3


def test_torch_is_seeded_once_an_epoch_and_not_at_each_step():
    first = draws(0, [1])[1]
    assert first[:3] != first[3:]


@pytest.mark.parametrize("seed", [0, 2**32 - 1, 10**12])
def test_a_seed_of_any_size_is_fine(seed):
    assert draws(seed, [1]) == draws(seed, [1])


def test_processes_draw_differently_but_streams_get_one_seed():
    class Stream:
        def set_random_state(self, seed):
            self.seed = seed

    engine, found = Engine(lambda engine, batch: None), []
    for rank in (0, 1):
        transform, stream = RandGaussianNoise(prob=1.0), Stream()
        EpochSeedHandler(0, [transform], [stream, None], rank=rank)(engine)
        found.append((stream.seed, transform.R.random_sample(), torch.rand(1).item()))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]
    assert found[0][2] != found[1][2]
