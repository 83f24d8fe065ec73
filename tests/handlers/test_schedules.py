from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from torch import nn

from dinomix_monai.handlers import CurriculumHandler, RampUpHandler

STEPS = 3


@pytest.fixture
def trainer():
    """A tiny trainer that notes its progress and its weight at every step, as the step sees them."""
    network = nn.Linear(1, 1)
    batch = {"image": torch.ones(1, 1), "label": torch.ones(1, 1)}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=[batch] * STEPS,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=lambda pred, label: note(trainer, pred),
        decollate=False,
    )
    trainer.progress, trainer.unsupervised_weight = math.nan, 7.0
    trainer.seen = []
    return trainer


def note(trainer, pred):
    trainer.seen.append((trainer.progress, trainer.unsupervised_weight))
    return pred.sum()


def run(trainer, max_epochs):
    trainer.state.max_epochs = max_epochs
    trainer.run()
    return trainer.seen


def ramp(progress, value, warm_up, ramp_up):
    """The formula written plainly."""
    u = (progress - warm_up) / ramp_up
    return 0 if u < 0 else value * math.exp(-5 * (1 - min(u, 1)) ** 2)


def test_progress_is_steps_done_over_steps_planned(trainer):
    CurriculumHandler(total_epochs=4).attach(trainer)
    seen = run(trainer, max_epochs=4)
    assert [progress for progress, _ in seen] == pytest.approx([step / 12 for step in range(12)])


@pytest.mark.parametrize("rounds", [[4], [1, 2, 3, 4], [3, 4]], ids=["one run", "one epoch a round", "uneven"])
def test_progress_does_not_depend_on_the_length_of_a_round(trainer, rounds):
    CurriculumHandler(total_epochs=8).attach(trainer)
    for max_epochs in rounds:
        run(trainer, max_epochs)
    assert [progress for progress, _ in trainer.seen] == pytest.approx([step / 24 for step in range(12)])


def test_progress_stays_at_1_after_the_plan(trainer):
    CurriculumHandler(total_epochs=1).attach(trainer)
    assert [progress for progress, _ in run(trainer, max_epochs=2)] == pytest.approx([0, 1 / 3, 2 / 3, 1, 1, 1])


def test_the_transform_has_the_progress_of_the_trainer(trainer):
    transform = SimpleNamespace(progress=None)
    CurriculumHandler(total_epochs=2, transform=transform).attach(trainer)
    run(trainer, max_epochs=1)
    assert transform.progress == trainer.progress == pytest.approx(2 / 6)


@pytest.mark.parametrize(("warm_up", "ramp_up"), [(0, 1), (0.25, 0.5), (0.2, 0.8), (0.5, 0.1)])
@pytest.mark.parametrize("progress", [0, 0.1, 0.3, 0.55, 0.75, 1])
def test_the_weight_is_the_formula_written_plainly(progress, warm_up, ramp_up):
    handler = RampUpHandler("unsupervised_weight", 0.3, warm_up, ramp_up)
    assert handler.weight(progress) == pytest.approx(ramp(progress, 0.3, warm_up, ramp_up))


def test_the_ramp_goes_from_0_by_exp_of_minus_5_to_the_value():
    handler = RampUpHandler("unsupervised_weight", 2.0, warm_up=0.25, ramp_up=0.5)
    assert [handler.weight(progress) for progress in (0, 0.125, 0.2499)] == [0, 0, 0]
    assert handler.weight(0.25) == pytest.approx(2 * math.exp(-5))
    assert handler.weight(0.5) == pytest.approx(2 * math.exp(-5 / 4))
    assert [handler.weight(progress) for progress in (0.75, 0.9, 1)] == [2, 2, 2]


def test_without_a_ramp_it_is_a_step():
    handler = RampUpHandler("unsupervised_weight", 2.0, warm_up=0.25)
    assert [handler.weight(progress) for progress in (0, 0.2, 0.25, 1)] == [0, 0, 2, 2]
    assert RampUpHandler("unsupervised_weight", 2.0).weight(0) == 2


def test_every_step_sees_the_weight_of_its_own_progress(trainer):
    CurriculumHandler(total_epochs=4).attach(trainer)
    RampUpHandler("unsupervised_weight", 0.3, warm_up=0.25, ramp_up=0.5).attach(trainer)
    weights = [weight for _, weight in run(trainer, max_epochs=4)]
    assert weights[:3] == [0, 0, 0]
    assert weights == pytest.approx([ramp(step / 12, 0.3, 0.25, 0.5) for step in range(12)])


@pytest.mark.parametrize("total_epochs", [0, -1])
def test_a_plan_without_epochs_is_refused(total_epochs):
    with pytest.raises(ValueError, match=f"total_epochs must be >= 1, got {total_epochs}"):
        CurriculumHandler(total_epochs)


@pytest.mark.parametrize(("warm_up", "ramp_up"), [(-0.1, 0), (1.5, 0), (0, -1), (0, 30)])
def test_shares_outside_of_the_run_are_refused(warm_up, ramp_up):
    message = rf"warm_up and ramp_up must be shares of the run in \[0, 1\], got {warm_up} and {ramp_up}"
    with pytest.raises(ValueError, match=message):
        RampUpHandler("unsupervised_weight", 1.0, warm_up, ramp_up)


def test_an_attribute_that_the_engine_lacks_is_refused():
    with pytest.raises(ValueError, match="attribute must name an attribute of Engine, got 'cps_w'"):
        RampUpHandler("cps_w", 1.0).attach(Engine(lambda engine, batch: None))
