from __future__ import annotations

import pytest
import torch

from dinomix_monai.teacher import PrincipalComponents


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(0)
    return 5 + torch.randn(200, 4, generator=generator) * torch.tensor([3.0, 0.5, 2.0, 0.1])


def test_they_are_those_of_a_singular_value_decomposition(vectors):
    components = PrincipalComponents(4)
    for portion in vectors.split(64):
        components.update(portion)
    mean, directions, kept = components.solve(2)
    _, values, expected = torch.linalg.svd((vectors - vectors.mean(0)).double())
    torch.testing.assert_close(mean, vectors.mean(0))
    torch.testing.assert_close((directions.double().T @ expected[:2].T).abs(), torch.eye(2).double(), rtol=0, atol=1e-5)
    assert kept == pytest.approx(float((values[:2] ** 2).sum() / (values**2).sum()))


def test_vectors_that_are_all_alike_lose_nothing():
    components = PrincipalComponents(3)
    components.update(torch.ones(5, 3))
    assert components.solve(1)[2] == 1


@pytest.mark.parametrize("k", [0, 5])
def test_a_number_outside_of_the_channels_is_refused(k, vectors):
    components = PrincipalComponents(4)
    components.update(vectors)
    with pytest.raises(ValueError, match=f"k must be from 1 to the 4 channels of the vectors, got {k}"):
        components.solve(k)


def test_vectors_must_come_first():
    with pytest.raises(ValueError, match="update must have been given vectors before solve, got none"):
        PrincipalComponents(2).solve(1)
