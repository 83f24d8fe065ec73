from __future__ import annotations

import math

import pytest
import torch
from ignite.engine import Events
from torch import nn

from dinomix_monai.baselines import (
    ClassWeightedDiceCELoss,
    CrossTrainer,
    DifficultyWeighting,
    DistributionWeighting,
    StudentPair,
)
from dinomix_monai.networks import EMATeacher
from tests.engines.conftest import ORDER_OF_EVENTS, events_of_a_run

CROSS_ENTROPY = ClassWeightedDiceCELoss(lambda_dice=0)


class ByNumber(nn.Module):
    """Weights of its own for each class; it notes what it is given."""

    def __init__(self, weights):
        super().__init__()
        self.weights = torch.tensor(weights)
        self.seen = []

    def forward(self, logits, label, unlabeled_logits):
        self.seen.append((logits, label, unlabeled_logits))
        return self.weights


@pytest.fixture
def make_cross_trainer(make_trainer, toy_network, unlabeled_batches):
    def make(**changes):
        torch.manual_seed(0)
        pair = StudentPair(toy_network())
        arguments = {
            "network": pair,
            "unlabeled_data_loader": unlabeled_batches(),
            "ema_teacher": EMATeacher(pair),
            "loss_function": CROSS_ENTROPY,
            "unlabeled_loss_function": CROSS_ENTROPY,
        }
        return make_trainer(CrossTrainer, **{**arguments, **changes})

    return make


def test_the_first_step_has_the_gradient_of_the_sum_written_plainly(make_cross_trainer):
    weightings = nn.ModuleList([ByNumber([1.0, 2.0, 3.0]), ByNumber([0.0, 1.0, 5.0])])
    trainer = make_cross_trainer(weightings=weightings, unsupervised_weight=0.3, decollate=False)
    a, b = trainer.network.first, trainer.network.second
    image, label = trainer.data_loader[0]["image"], trainer.data_loader[0]["label"][:, 0]
    everything = torch.cat([image, trainer.unlabeled_data_loader[0]["image"]])
    loss = 0.0
    for own, other, weight in ((a, b, weightings[0].weights), (b, a, weightings[1].weights)):
        loss = loss + nn.functional.cross_entropy(own(image), label, weight)
        loss = loss + 0.3 * nn.functional.cross_entropy(own(everything), other(everything).argmax(1), weight)
    gradients = torch.autograd.grad(loss, list(trainer.network.parameters()))
    expected = [p.detach() - 0.1 * g for p, g in zip(trainer.network.parameters(), gradients)]
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda engine: engine.terminate())
    trainer.run()
    assert float(trainer.state.output["loss"]) == pytest.approx(float(loss), rel=1e-5)
    for parameter, value in zip(trainer.network.parameters(), expected):
        torch.testing.assert_close(parameter.detach(), value)


def test_a_weighting_is_given_the_logits_of_its_own_student(make_cross_trainer):
    weightings = nn.ModuleList([ByNumber([1.0] * 3), ByNumber([1.0] * 3)])
    trainer = make_cross_trainer(weightings=weightings, max_epochs=1)
    labeled, unlabeled = trainer.data_loader[0], trainer.unlabeled_data_loader[0]
    with torch.no_grad():
        expected = [
            (s(labeled["image"]), s(unlabeled["image"])) for s in (trainer.network.first, trainer.network.second)
        ]
    trainer.run()
    for weighting, (own, own_unlabeled) in zip(weightings, expected):
        logits, label, unlabeled_logits = weighting.seen[0]
        torch.testing.assert_close(logits, own)
        torch.testing.assert_close(unlabeled_logits, own_unlabeled)
        assert torch.equal(label, labeled["label"])
        assert not logits.requires_grad


def test_without_weightings_every_class_counts_alike(make_cross_trainer):
    plain = make_cross_trainer(max_epochs=1)
    plain.run()
    ones = make_cross_trainer(max_epochs=1, weightings=nn.ModuleList([ByNumber([1.0] * 3)] * 2))
    ones.run()
    assert all(torch.equal(p, q) for p, q in zip(plain.network.parameters(), ones.network.parameters()))


@pytest.mark.filterwarnings("ignore:There are no unlabeled images")
@pytest.mark.parametrize("changes", [{"unsupervised_weight": 0.0}, {"unlabeled_data_loader": None}])
def test_without_unlabeled_images_each_student_learns_by_itself(make_cross_trainer, changes):
    weightings = nn.ModuleList([DifficultyWeighting(3), DistributionWeighting([9, 3, 1])])
    trainer = make_cross_trainer(weightings=weightings, **changes)
    rows = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: rows.append(dict(engine.state.output[0])))
    trainer.run()
    assert all(math.isfinite(row["loss"]) and "unsupervised" not in row for row in rows)
    assert len(trainer.network.first.inputs[0]) == 2
    assert weightings[1].weights.tolist() == DistributionWeighting([9, 3, 1]).weights.tolist()


def test_the_events_of_a_step_come_in_monais_order(make_cross_trainer):
    seen = events_of_a_run(make_cross_trainer(max_epochs=1, decollate=False))
    assert [event for event, _ in seen[:4]] == ORDER_OF_EVENTS
    assert seen[0][1] == ["image", "label", "pred"]
    assert seen[1][1] == ["image", "label", "loss", "pred", "supervised", "unsupervised"]


def test_the_output_has_one_prediction_for_a_labeled_patch(make_cross_trainer):
    trainer = make_cross_trainer(max_epochs=1, decollate=False)
    trainer.run()
    assert trainer.state.output["pred"].shape == (2, 3, 8, 8, 8)


def test_a_single_network_and_a_wrong_number_of_weightings_are_refused(make_cross_trainer, toy_network):
    with pytest.raises(TypeError, match="network must be a StudentPair, got ToyNetwork"):
        make_cross_trainer(network=toy_network())
    with pytest.raises(ValueError, match="weightings must be one for each of two students, got 1"):
        make_cross_trainer(weightings=nn.ModuleList([ByNumber([1.0] * 3)]))


def test_labeled_images_are_needed(make_cross_trainer):
    with pytest.raises(ValueError, match="train_data_loader must yield labeled batches, got none"):
        make_cross_trainer(train_data_loader=[])


def test_all_that_has_a_state_is_saved(make_cross_trainer):
    weightings = nn.ModuleList([DifficultyWeighting(3), DistributionWeighting([9, 9, 9])])
    trainer = make_cross_trainer(weightings=weightings)
    stateful = {name for name, part in vars(trainer).items() if hasattr(part, "state_dict")}
    # The losses have nothing that changes, and the student is the network.
    assert stateful - {"student", "loss_function", "unlabeled_loss_function"} == set(trainer.to_save)
