from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import RandGaussianNoised

from dinomix_monai.transforms import RandTensorNoised

SHAPE = (1, 20, 20, 20)


def noises(transform, count, image=None):
    image = torch.zeros(SHAPE) if image is None else image
    transform.set_random_state(3)
    return [transform({"image": image})["image"] for _ in range(count)]


def test_it_is_distributed_as_monais():
    ours, theirs = (
        torch.stack(noises(kind("image", std=0.3, prob=0.4), 400)) for kind in (RandTensorNoised, RandGaussianNoised)
    )
    for found in (ours, theirs):
        deviations = found.flatten(1).std(1)
        there = deviations > 0
        assert there.float().mean() == pytest.approx(0.4, abs=0.08)
        # Uniform between 0 and 0.3.
        assert deviations.max() < 0.31
        assert deviations[there].mean() == pytest.approx(0.15, abs=0.02)
        scaled = found[there].flatten(1) / deviations[there, None]
        assert scaled.mean().abs() < 0.01
        assert (scaled**4).mean() == pytest.approx(3, abs=0.05)


def test_it_is_added_and_the_input_stays_as_it_is():
    image = MetaTensor(torch.ones(SHAPE), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])))
    found = noises(RandTensorNoised("image", std=0.5, prob=1), 1, image)[0]
    assert torch.equal(image.as_tensor(), torch.ones(SHAPE))
    assert found.mean() == pytest.approx(1, abs=0.02)
    assert torch.equal(found.affine, image.affine)


def test_a_seed_decides_it_and_each_sample_has_its_own():
    transform = RandTensorNoised("image", prob=1)
    first, second = noises(transform, 2), noises(transform, 2)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert abs(np.corrcoef(first[0].flatten(), first[1].flatten())[0, 1]) < 0.05


def test_images_of_a_sample_share_their_noise():
    transform = RandTensorNoised(["image", "strong", "missing"], prob=1, allow_missing_keys=True)
    found = transform({"image": torch.zeros(SHAPE), "strong": np.ones(SHAPE, dtype=np.float32)})
    torch.testing.assert_close(found["image"], found["strong"].as_tensor() - 1, atol=1e-6, rtol=0)
    assert found["image"].any()


def test_the_global_random_state_stays_as_it_is():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    noises(RandTensorNoised("image", prob=1), 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.gpu
def test_on_a_gpu_it_is_drawn_there():
    found = noises(RandTensorNoised("image", prob=1), 1, torch.zeros(SHAPE, device="cuda"))[0]
    assert found.is_cuda
    assert found.std() > 0


def test_a_negative_deviation_is_refused():
    with pytest.raises(ValueError, match=r"std must be >= 0, got -1"):
        RandTensorNoised("image", std=-1)
