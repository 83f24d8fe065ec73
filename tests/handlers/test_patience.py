from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedEvaluator
from torch import nn

from dinomix_monai.handlers import BestModelHandler, PatienceHandler


@pytest.fixture
def run(tmp_path):
    """Runs a training whose validations give these values; returns its last epoch and the handler of the best model."""

    def run(values, patience, state=None):
        validator = SupervisedEvaluator(torch.device("cpu"), [{"image": torch.zeros(1, 1)}], network=nn.Identity())
        validator.prepare_batch = lambda batch, *args, **kwargs: (batch["image"], None)
        trainer, given = Engine(lambda engine, batch: None), iter(values)
        validator.add_event_handler(
            Events.EPOCH_COMPLETED, lambda: validator.state.metrics.update(val_mean_dice=next(given))
        )
        best_model = BestModelHandler(tmp_path / "model.pt", ["background", "organ"])
        best_model.attach(validator)
        if state is not None:
            best_model.load_state_dict(state)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: validator.run())
        PatienceHandler(best_model, patience).attach(trainer)
        trainer.run([0], max_epochs=len(values))
        return trainer.state.epoch, best_model

    return run


@pytest.mark.parametrize(
    ("values", "patience", "epochs"),
    [
        ([0.1, 0.2, 0.2, 0.1, 0.3], 2, 4),
        ([0.1, 0.2, 0.2, 0.3, 0.3], 2, 5),
        ([0.5, 0.4], 1, 2),
        ([0.1, math.nan, math.nan, 0.2], 2, 3),
        ([math.nan, 0.1, 0.2, 0.3], 1, 4),
        ([math.nan] * 5, 2, 5),
        ([0.1] * 9, None, 9),
    ],
)
def test_the_training_ends_after_so_many_validations_without_a_better_one(run, values, patience, epochs):
    assert run(values, patience)[0] == epochs


def test_a_resumed_run_remembers_the_best_and_how_long_it_has_waited(run):
    _, first = run([0.1, 0.3, 0.2], 3)
    assert (first.best, first.waited) == (0.3, 1)
    assert run([0.2, 0.3, 0.9], 3, first.state_dict())[0] == 2


def test_a_run_that_had_ended_does_not_go_on(run):
    _, ended = run([0.3, 0.2, 0.2, 0.9], 2)
    assert run([0.9], 2, ended.state_dict())[0] == 0


def test_patience_of_less_than_one_validation_is_refused():
    with pytest.raises(ValueError, match="patience must be >= 1 or None, got 0"):
        PatienceHandler(None, 0)
