from __future__ import annotations

import re

import pytest
import torch

from dinomix_monai.networks import LinearProbe


def blobs(counts, centers, spread=0.1):
    torch.manual_seed(0)
    labels = torch.cat([torch.full((count,), index) for index, count in enumerate(counts)])
    return torch.tensor(centers, dtype=torch.float32)[labels] + spread * torch.randn(len(labels), 2), labels


def test_classes_that_a_line_divides_are_told_apart():
    features, labels = blobs((50, 40, 5), ((0, 0), (1, 0), (0, 1)))
    probe = LinearProbe.fit(features, labels, 3)
    assert torch.equal(probe(features).argmax(-1), labels)


def test_the_probe_is_the_minimum_of_its_formula():
    features, labels = blobs((60, 30, 10), ((0, 0), (1, 0), (0, 1)), spread=0.6)
    probe = LinearProbe.fit(features, labels, 3, penalty=0.01, iterations=500)
    inputs = (features - features.mean(0)) / (features.std(0, correction=0) + 1e-5)
    weight, bias = (value.clone().requires_grad_() for value in (probe.linear.weight, probe.linear.bias))
    own = torch.tensor([1.0, 2.0**0.5, 6.0**0.5])[labels]  # of the square root of largest / own
    log_likelihood = (inputs @ weight.T + bias).log_softmax(-1)[torch.arange(100), labels]
    (-(own * log_likelihood).sum() / own.sum() + 0.01 * (weight**2).sum()).backward()
    for gradient in (weight.grad, bias.grad):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-4)


def test_units_of_the_features_do_not_matter():
    features, labels = blobs((60, 30, 10), ((0, 0), (1, 0), (0, 1)), spread=0.6)
    other = features * torch.tensor([1000.0, 0.01]) + torch.tensor([5.0, -3.0])
    found = [LinearProbe.fit(values, labels, 3)(values).argmax(-1) for values in (features, other)]
    assert (found[0] == found[1]).float().mean() > 0.98


def test_class_weights_give_points_to_the_small_class():
    features, labels = blobs((1000, 10), ((0, 0), (0.6, 0)), spread=0.4)
    found = [
        LinearProbe.fit(features, labels, 2, class_weight_power=power)(features).argmax(-1) for power in (0.0, 0.5, 1.0)
    ]
    assert found[0].sum() < found[1].sum() < found[2].sum()


def test_a_class_that_was_not_there_is_never_predicted():
    features, labels = blobs((20, 20), ((0, 0), (1, 0)))
    probe = LinearProbe.fit(features, labels, 4)
    logits = probe(torch.randn(100, 2) * 100)
    assert logits.shape == (100, 4)
    assert set(logits.argmax(-1).tolist()) <= {0, 1}


def test_a_state_that_is_loaded_gives_the_same_logits():
    features, labels = blobs((20, 20), ((0, 0), (1, 0)))
    probe, other = LinearProbe.fit(features, labels, 2), LinearProbe(2, 2)
    other.load_state_dict(probe.state_dict())
    assert torch.equal(other(features), probe(features))


@pytest.mark.parametrize("shapes", [((4, 2), (3,)), ((0, 2), (0,)), ((4,), (4,))])
def test_points_that_do_not_belong_together_are_refused(shapes):
    features, labels = torch.rand(shapes[0]), torch.zeros(shapes[1], dtype=torch.long)
    with pytest.raises(ValueError, match=re.escape(f"N > 0, got {shapes[0]} and {shapes[1]}.")):
        LinearProbe.fit(features, labels, 2)


def test_points_that_were_drawn_stand_for_all_voxels():
    features, labels = blobs((4000, 400, 40), ((0, 0), (1, 0), (0, 1)), spread=0.6)
    voxels = torch.bincount(labels)
    # Every point of the small classes, and a tenth of the large one.
    drawn = torch.cat([torch.arange(0, 4000, 10), torch.arange(4000, 4440)])
    whole = LinearProbe.fit(features, labels, 3, penalty=0.01, iterations=500)
    part = LinearProbe.fit(features[drawn], labels[drawn], 3, voxels, penalty=0.01, iterations=500)
    naive = LinearProbe.fit(features[drawn], labels[drawn], 3, penalty=0.01, iterations=500)
    expected = whole(features).softmax(-1)
    errors = [(probe(features).softmax(-1) - expected).abs().mean() for probe in (part, naive)]
    assert errors[0] < 0.02 < errors[1] / 3
