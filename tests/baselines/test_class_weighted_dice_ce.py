from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dinomix_monai.baselines import ClassWeightedDiceCELoss


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, 4, 4, 4, generator=generator), torch.randint(0, 3, (2, 1, 4, 4, 4), generator=generator)


@pytest.mark.parametrize("weight", [None, [0.0, 0.5, 3.0]])
def test_cross_entropy_is_that_of_torch(batch, weight):
    logits, label = batch
    weight = None if weight is None else torch.tensor(weight)
    found = ClassWeightedDiceCELoss(lambda_dice=0)(logits, label, weight)
    torch.testing.assert_close(found, F.cross_entropy(logits, label[:, 0], weight))


def test_dice_is_the_formula_written_plainly(batch):
    logits, label = batch
    weight = [7.0, 0.5, 3.0]
    p, expected = logits.softmax(1), 0.0
    for c in (1, 2):
        true = (label[:, 0] == c).float()
        dice = (2 * (p[:, c] * true).sum() + 1) / (p[:, c].sum() + true.sum() + 1)
        expected += weight[c] * (1 - dice) / 2
    torch.testing.assert_close(ClassWeightedDiceCELoss(lambda_ce=0)(logits, label, torch.tensor(weight)), expected)


def test_the_sum_has_both_terms(batch):
    parts = [ClassWeightedDiceCELoss(dice, ce)(*batch) for dice, ce in ((2.0, 0.0), (0.0, 3.0), (2.0, 3.0))]
    torch.testing.assert_close(parts[0] + parts[1], parts[2])


def test_labels_of_classes_without_weight_teach_nothing_and_are_no_nan(batch):
    logits = batch[0].requires_grad_()
    loss = ClassWeightedDiceCELoss(lambda_dice=0)(logits, torch.zeros_like(batch[1]), torch.tensor([0.0, 1.0, 1.0]))
    loss.backward()
    assert float(loss) == 0
    assert not logits.grad.any()


@pytest.mark.parametrize("lambdas", [(-1.0, 1.0), (0.0, 0.0)])
def test_lambdas_out_of_range_are_refused(lambdas):
    with pytest.raises(ValueError, match="lambda_dice and lambda_ce must be >= 0 and not both 0"):
        ClassWeightedDiceCELoss(*lambdas)
