from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dinomix_monai.label.next_case import dice_shortfall, mean_entropy


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
