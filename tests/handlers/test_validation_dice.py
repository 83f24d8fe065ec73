from __future__ import annotations

import numpy as np
import pytest
import torch
from ignite.engine import Engine

from dinomix_monai.handlers import ValidationDice

POSSIBLE = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)


def scored(
    prediction: list[int], label: list[int], possible: np.ndarray | None = POSSIBLE
) -> tuple[float, list[float]]:
    """The mean, and Dice of each foreground class."""
    metric = ValidationDice(include_background=False, num_classes=3, possible=possible)
    metric.attach(Engine(lambda engine, batch: None), "dice")
    maps = [torch.tensor(values).reshape(1, -1, 1, 1) for values in (prediction, label)]
    metric.update([[maps[0]], [maps[1]]])
    each = metric.metric_fn.get_buffer()[0].tolist()
    return float(metric.compute()), each


def test_a_class_is_scored_where_the_label_tells_whether_it_is_there() -> None:
    # Of class 1 two voxels are found, one is missed and one invented; the last two nobody has looked at.
    mean, (first, second) = scored([1, 1, 0, 1, 2, 1, 2], [1, 1, 1, 3, 3, 4, 4])
    assert first == pytest.approx(2 * 2 / (3 + 3))
    # Nobody has looked for class 2.
    assert np.isnan(second)
    assert mean == pytest.approx(first)


def test_complete_labels_have_the_same_score_with_sets_of_classes() -> None:
    maps = [1, 1, 0, 2, 2], [1, 0, 0, 2, 1]
    assert scored(*maps) == scored(*maps, possible=None)


def test_the_dice_of_each_class_stands_beside_the_mean() -> None:
    metric = ValidationDice(False, num_classes=3, possible=POSSIBLE, class_names=["liver", "gland"])
    engine = Engine(lambda engine, batch: None)
    metric.attach(engine, "val_mean_dice")
    engine.state.metrics = {"val_dice/gland": 1.0}
    maps = [torch.tensor(values).reshape(1, -1, 1, 1) for values in ([1, 1, 0, 1, 2], [1, 1, 1, 3, 3])]
    metric.update([[maps[0]], [maps[1]]])
    metric.update([[maps[1].clamp(max=1)], [maps[1]]])
    metric.completed(engine, "val_mean_dice")
    # Nobody has looked for the gland, so it has no score any more. In the second case the liver is all that was found.
    liver = (2 * 2 / (3 + 3) + 2 * 3 / (5 + 3)) / 2
    assert engine.state.metrics == {"val_mean_dice": pytest.approx(liver), "val_dice/liver": pytest.approx(liver)}
