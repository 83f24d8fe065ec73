from __future__ import annotations

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from torch import nn

from dinomix_monai.handlers import EMAUpdateHandler
from dinomix_monai.networks import EMATeacher


def test_the_teacher_takes_one_step_after_each_of_the_student():
    network = nn.Linear(1, 1, bias=False)
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=2,
        train_data_loader=[{"image": torch.ones(1, 1), "label": torch.ones(1, 1)}] * 3,
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
        loss_function=lambda pred, label: pred.sum(),  # each step takes 1 from the weight
        decollate=False,
    )
    trainer.ema_teacher = EMATeacher(network, decay=0.3)
    EMAUpdateHandler().attach(trainer)
    averages, start = [], network.weight.item()
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED, lambda engine: averages.append(engine.ema_teacher.module.weight.item())
    )
    trainer.run()
    average, expected = start - 1, [start - 1]
    for n in range(1, 6):
        keep = min(0.3, (1 + n) / (10 + n))
        average = keep * average + (1 - keep) * (start - 1 - n)
        expected.append(average)
    assert averages == pytest.approx(expected)
    assert network.weight.item() == pytest.approx(start - 6)
