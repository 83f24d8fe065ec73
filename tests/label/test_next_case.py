from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dinomix_monai.label.next_case import dice_shortfall, diverse_order, expected_gain, mean_entropy


def test_shortfall_is_counted_by_hand() -> None:
    # Four voxels: both sure of the first class in two of them, opposite in the third, in doubt in the fourth.
    student = torch.tensor([[1.0, 1.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.5]]).reshape(2, 2, 2)
    teacher = torch.tensor([[1.0, 1.0, 0.0, 0.5], [0.0, 0.0, 1.0, 0.5]]).reshape(2, 2, 2)
    expected = [1 - 2 * (1 + 1 + 0 + 0.25) / (3.5 + 2.5), 1 - 2 * 0.25 / (0.5 + 1.5)]
    torch.testing.assert_close(dice_shortfall(student, teacher), torch.tensor(expected, dtype=torch.float64))


def test_shortfall_is_none_where_both_are_sure_and_all_where_they_contradict() -> None:
    sure = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).reshape(3, 2, 1)
    # The third class is in neither.
    assert dice_shortfall(sure, sure).tolist() == [0, 0, 0]
    assert dice_shortfall(sure, sure[[1, 0, 2]]).tolist() == [1, 1, 0]


def test_shortfall_is_the_expected_dice_that_is_lost_when_the_truth_is_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.rand(2, 40, 40, generator=generator).softmax(0)
    teacher = (3 * torch.rand(2, 40, 40, generator=generator)).softmax(0)
    dice = []
    for _ in range(50):
        a, b = (torch.bernoulli(part[1], generator=generator) for part in (student, teacher))
        dice.append(float(2 * (a * b).sum() / (a.sum() + b.sum())))
    assert float(dice_shortfall(student, teacher)[1]) == pytest.approx(1 - np.mean(dice), abs=0.01)


def test_entropy_of_a_coin_is_log_two() -> None:
    assert mean_entropy(torch.full((2, 3, 3), 0.5)) == pytest.approx(math.log(2))
    assert mean_entropy(torch.tensor([[1.0, 0.5], [0.0, 0.5]]).reshape(2, 2, 1)) == pytest.approx(math.log(2) / 2)


def test_gain_weighs_rare_classes_by_the_inverse_root_of_their_voxels() -> None:
    # 1 / sqrt(n + 1) of 99 and 9999 voxels is 1/10 and 1/100, so the weights are 10/11 and 1/11.
    gains = expected_gain(np.array([[0.2, 0.0], [0.0, 0.2], [0.1, 0.9]]), [99, 9999])
    np.testing.assert_allclose(gains, [2 / 11, 0.2 / 11, (1 + 0.9) / 11])


def test_before_there_are_labels_classes_count_alike() -> None:
    np.testing.assert_allclose(expected_gain(np.array([[0.4, 0.0]]), [0, 0]), [0.2])


def test_gain_alone_decides_where_scans_are_all_alike_or_equally_unlike() -> None:
    gains = np.array([0.1, 0.3, 0.2])
    assert diverse_order(gains, np.zeros((3, 2))) == [1, 2, 0]
    triangle = np.array([[0, 0], [1, 0], [0.5, math.sqrt(3) / 2]])
    assert diverse_order(gains, triangle)[0] == 1


def test_two_scans_that_are_the_same_do_not_follow_each_other() -> None:
    gains = np.array([0.9, 0.89, 0.3, 0.2])
    features = np.array([[1.0, 0.0], [1.0, 1e-6], [0.0, 1.0], [-1.0, 0.5]])
    order = diverse_order(gains, features)
    assert order[0] == 0
    assert order[-1] == 1
    assert sorted(order) == [0, 1, 2, 3]


def test_a_scan_like_one_that_is_labeled_comes_last() -> None:
    features = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    assert diverse_order(np.array([0.9, 0.3, 0.2]), features, np.array([[1.0, 0.0]]))[-1] == 0


def test_units_of_features_do_not_matter() -> None:
    random = np.random.default_rng(0)
    gains, features = random.random(8), random.normal(size=(8, 3))
    assert diverse_order(gains, features) == diverse_order(gains, features * (1, 1000, 1e-3) + (5, 0, -7))


def test_shapes_that_do_not_go_together_are_named() -> None:
    with pytest.raises(ValueError, match=r"shortfalls must have shape \(N, 3\), .* got \(2, 2\)"):
        expected_gain(np.zeros((2, 2)), [1, 2, 3])
    with pytest.raises(
        ValueError, match=r"features must have shape \(2, F\) and known \(M, F\), got \(3, 1\) and \(0, 1\)"
    ):
        diverse_order(np.zeros(2), np.zeros((3, 1)))
    with pytest.raises(ValueError, match=r"got \(2, 1\) and \(1, 4\)"):
        diverse_order(np.zeros(2), np.zeros((2, 1)), np.zeros((1, 4)))
