from __future__ import annotations

import pytest
import torch
from monai.engines import SupervisedTrainer
from torch import nn

from dinomix_monai.federated.site import ProximalHandler


def weights_after_a_step(anchor, handlers=(), proximal=0.0):
    torch.manual_seed(0)
    network = nn.Linear(3, 1)
    if anchor is None:
        anchor = {name: value.detach().clone() for name, value in network.named_parameters()}

    def loss(prediction, target):
        term = sum(((p - anchor[name]) ** 2).sum() for name, p in network.named_parameters())
        return ((prediction - target) ** 2).mean() + proximal / 2 * term

    batch = {"image": torch.rand(4, 3, generator=torch.Generator().manual_seed(1)), "label": torch.ones(4, 1)}
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=3,
        train_data_loader=[batch],
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        loss_function=loss,
        train_handlers=list(handlers),
        decollate=False,
    )
    trainer.run()
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def test_the_gradient_is_that_of_the_penalty_in_the_loss():
    anchor = {"weight": torch.full((1, 3), 0.5), "bias": torch.tensor([-1.0])}
    handler = ProximalHandler(0.7)
    handler.anchor = anchor
    expected = weights_after_a_step(anchor, proximal=0.7)
    torch.testing.assert_close(weights_after_a_step(anchor, [handler]), expected)
    assert not torch.allclose(weights_after_a_step(anchor), expected)


def test_without_an_anchor_there_is_no_term():
    torch.testing.assert_close(weights_after_a_step(None, [ProximalHandler(5.0)]), weights_after_a_step(None))


def test_a_weight_of_0_is_refused():
    with pytest.raises(ValueError, match="weight must be > 0, got 0"):
        ProximalHandler(0)
