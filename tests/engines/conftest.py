from __future__ import annotations

import pytest
import torch
from monai.engines.utils import IterationEvents
from torch import nn

from dinomix_monai.engines import DinoMixTrainer, PseudoLabeler
from dinomix_monai.networks import EMATeacher

NUM_CLASSES = 3


class ToyNetwork(nn.Module):
    """A convolution to features and one to logits; it notes what it is given in training mode."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv3d(1, 4, 2, stride=2)
        self.up = nn.ConvTranspose3d(4, NUM_CLASSES, 2, stride=2)
        self.inputs = []

    def forward(self, x):
        if self.training:
            self.inputs.append(x.detach().clone())
        return self.up(self.features(x).tanh())


def make_batches(number, seed, size=2, strong=False):
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(number):
        image = torch.rand(size, 1, 8, 8, 8, generator=generator)
        batch = {"image": image, "label": torch.randint(0, NUM_CLASSES, image.shape, generator=generator)}
        if strong:
            del batch["label"]
            batch["strong"] = 10 + image
        batches.append(batch)
    return batches


def cross_entropy(logits, label):
    return nn.functional.cross_entropy(logits, label[:, 0].long())


def weighted_cross_entropy(logits, label, weight):
    return (nn.functional.cross_entropy(logits, label[:, 0].long(), reduction="none") * weight[:, 0]).mean()


# MONAI's own, of a step of its SupervisedTrainer.
ORDER_OF_EVENTS = [
    IterationEvents.FORWARD_COMPLETED,
    IterationEvents.LOSS_COMPLETED,
    IterationEvents.BACKWARD_COMPLETED,
    IterationEvents.MODEL_COMPLETED,
]


def events_of_a_run(trainer):
    """Runs a trainer; for each event of its steps, the event and the names in the output at that moment."""
    seen = []
    for event in IterationEvents:
        trainer.add_event_handler(event, lambda engine, event: seen.append((event, sorted(engine.state.output))), event)
    trainer.run()
    return seen


@pytest.fixture
def toy_network():
    return ToyNetwork


@pytest.fixture
def unlabeled_batches():
    return lambda: make_batches(3, seed=2, size=1, strong=True)


@pytest.fixture
def make_trainer(unlabeled_batches):
    """
    A semi-supervised trainer without distillation, with ``**changes``.

    Everything in it is the same each time. With a threshold of 0 each voxel of an unlabeled patch counts. ``distiller``
    is a function of the network.
    """

    def make(trainer_class=DinoMixTrainer, network=None, steps=3, distiller=None, **changes):
        torch.manual_seed(0)
        network = (ToyNetwork() if network is None else network).to(changes.get("device", "cpu"))
        if distiller is not None:
            changes["distiller"] = distiller(network)
        arguments = {
            "device": torch.device("cpu"),
            "max_epochs": 2,
            "train_data_loader": make_batches(steps, seed=1),
            "network": network,
            "optimizer": torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
            "loss_function": cross_entropy,
        }
        if trainer_class is DinoMixTrainer:
            arguments |= {
                "unlabeled_data_loader": unlabeled_batches(),
                "ema_teacher": EMATeacher(network),
                "pseudo_labeler": PseudoLabeler(NUM_CLASSES, threshold=0.0, floor=0.0),
                "unlabeled_loss_function": weighted_cross_entropy,
            }
        return trainer_class(**{**arguments, **changes})

    return make
