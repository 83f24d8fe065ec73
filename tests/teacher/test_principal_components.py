from __future__ import annotations

import numpy as np
import pytest
import torch

from dinomix_monai.teacher import PrincipalComponents
from dinomix_monai.teacher.token_files import TokenFiles
from tests.peak_memory import PeakMemory


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


def test_of_a_large_portion_a_part_is_in_double_precision_at_a_time():
    generator = torch.Generator().manual_seed(0)
    portion = (torch.randn(50_000, 4, generator=generator) * torch.tensor([3.0, 0.5, 2.0, 0.1])).half()
    components = PrincipalComponents(4)
    with PeakMemory() as memory:
        components.update(portion)
    assert memory.peak < portion.nbytes  # in double precision it is four times as large
    mean, directions, _ = components.solve(4)
    torch.testing.assert_close(mean, portion.double().mean(0).float())
    _, expected = torch.linalg.eigh(torch.cov(portion.double().T))
    torch.testing.assert_close((directions.double().T @ expected.flip(1)).abs(), torch.eye(4).double())


def test_tokens_of_a_volume_are_reduced_layer_by_layer(tmp_path):
    tokens = np.random.default_rng(0).standard_normal((40, 8, 8, 16)).astype(np.float16)
    files = TokenFiles(tmp_path)
    files.write("a", tokens)
    files.open_components(["a"], ["a"], 2)
    with PeakMemory() as memory:
        reduced = files.read("a", is_reduced=True)
    assert memory.peak < 1.5 * tokens.nbytes  # what is mapped, and not all of it in single precision
    with np.load(next(tmp_path.rglob("components.npz"))) as basis:
        expected = (tokens.astype(np.float32) - basis["mean"]) @ basis["directions"]
    torch.testing.assert_close(reduced.float(), torch.from_numpy(expected), rtol=0, atol=2e-3)


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
