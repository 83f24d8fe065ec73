from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dinomix_monai.baselines import DifficultyWeighting, DistributionWeighting


def logits_of(labels, num_classes=3):
    """Logits of shape (1, C, n, 1, 1) whose argmax are ``labels``."""
    return torch.nn.functional.one_hot(torch.tensor(labels), num_classes).T[None, :, :, None, None].float()


def label_of(labels):
    return torch.tensor(labels)[None, None, :, None, None]


def rarity(counts):
    ratios = [math.log(max(counts) / n) for n in counts]
    return np.array([len(counts) * ratio / max(ratios) for ratio in ratios])


def test_rarity_begins_with_the_labeled_set():
    weighting = DistributionWeighting([900, 90, 9])
    label, logits = label_of([0]), logits_of([0])
    np.testing.assert_allclose(weighting(logits, label, None), rarity([900, 90, 9]), rtol=1e-5)
    np.testing.assert_allclose(weighting.weights, [0, 1.5, 3], rtol=1e-5)


def test_rarity_follows_the_predictions_for_unlabeled_patches():
    weighting = DistributionWeighting([900, 90, 9], decay=0.75)
    found = weighting(logits_of([1] * 4), label_of([1] * 4), logits_of([0] * 2 + [1] * 4 + [2]))
    np.testing.assert_allclose(found, 0.75 * rarity([900, 90, 9]) + 0.25 * rarity([2, 4, 1]), rtol=1e-5)


def test_a_class_that_is_never_predicted_is_the_rarest_and_weights_stay_finite():
    weighting = DistributionWeighting([5, 5, 5], decay=0.0)
    assert weighting.weights.tolist() == [0, 0, 0]
    found = weighting(logits_of([0]), label_of([0]), logits_of([0, 0, 1]))
    assert found[2] == 3
    assert 0 < found[1] < 0.2
    assert found[0] == 0


def test_difficulty_is_the_published_recursion_written_plainly():
    """Over three steps: one class that is learned, one that is forgotten, and the background."""
    truth = [0] * 6 + [1] * 4 + [2] * 4
    steps = [
        [0] * 6 + [1, 0, 0, 0] + [2, 2, 2, 0],
        [0] * 6 + [1, 1, 1, 0] + [2, 2, 0, 0],
        [0] * 6 + [1, 1, 1, 1] + [2, 0, 0, 0],
    ]
    weighting = DifficultyWeighting(3, decay=0.5, alpha=0.2)
    gain, loss, last, unreached = ([0.0] * 3, [0.0] * 3, [1e-8] * 3, [1.0] * 3)
    for predicted in steps:
        found = weighting(logits_of(predicted), label_of(truth), None)
        expected = []
        for c in range(3):
            both = sum(p == t == c for p, t in zip(predicted, truth))
            dice = 2 * both / (predicted.count(c) + truth.count(c))
            change = dice - last[c]
            gain[c] = 0.5 * gain[c] + 0.5 * (change * math.log(dice / last[c]) if change > 0 else 0)
            loss[c] = 0.5 * loss[c] + 0.5 * (change * math.log(dice / last[c]) if change <= 0 else 0)
            unreached[c] = 0.5 * unreached[c] + 0.5 * (1 - dice)
            last[c] = dice
            expected.append(((loss[c] + 1e-8) / (gain[c] + 1e-8)) ** 0.2 * unreached[c])
        np.testing.assert_allclose(found, 3 * np.array(expected) / max(expected), rtol=1e-4)
    assert found.argmax() == 2


def test_a_class_that_the_labels_do_not_show_keeps_its_state():
    weighting = DifficultyWeighting(3)
    weighting(logits_of([0, 1, 2, 2]), label_of([0, 1, 2, 1]), None)
    before = {name: value.clone() for name, value in weighting.state_dict().items()}
    weighting(logits_of([0, 1, 1, 1]), label_of([0, 1, 1, 0]), None)
    for name, value in weighting.state_dict().items():
        assert value[2] == before[name][2]
        assert value[1] != before[name][1] or name == "losses"


def test_a_class_that_is_never_found_has_a_finite_weight():
    weighting = DifficultyWeighting(3)
    for _ in range(5):
        found = weighting(logits_of([0] * 8), label_of([0] * 4 + [1] * 4), None)
    assert torch.isfinite(found).all()


def test_weights_survive_a_checkpoint():
    for make in (lambda: DifficultyWeighting(3), lambda: DistributionWeighting([9, 3, 1])):
        weighting, other = make(), make()
        arguments = logits_of([0, 1, 2, 0]), label_of([0, 1, 1, 2]), logits_of([0, 0, 0, 1])
        weighting(*arguments)
        other.load_state_dict(weighting.state_dict())
        assert torch.equal(weighting(*arguments), other(*arguments))


def test_arguments_out_of_range_are_refused():
    with pytest.raises(ValueError, match="labeled_voxels must list background and each class"):
        DistributionWeighting([3])
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1"):
        DistributionWeighting([3, 2], decay=1)
    with pytest.raises(ValueError, match="alpha must be >= 0, got -1"):
        DifficultyWeighting(3, alpha=-1)
