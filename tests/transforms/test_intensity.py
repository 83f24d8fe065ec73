from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import ScaleIntensityRanged, ScaleIntensityRangePercentilesd

from dinomix_monai.transforms import ScaleChannelsd, intensity_scaling, scaling_window


def image(channels: int) -> MetaTensor:
    values = torch.from_numpy(np.random.default_rng(0).normal(50, 200, (channels, 6, 5, 4))).float()
    return MetaTensor(values, meta={"filename_or_obj": "a.nii"})


def test_each_channel_is_scaled_by_its_own_window() -> None:
    both = image(2)
    found = intensity_scaling("image", [[-160, 240], None])({"image": both})["image"]
    assert found.meta["filename_or_obj"] == "a.nii"
    for channel, window in enumerate(([-160, 240], None)):
        alone = intensity_scaling("image", window)({"image": both[channel : channel + 1]})["image"]
        torch.testing.assert_close(found[channel : channel + 1].as_tensor(), torch.as_tensor(alone).as_tensor())
    assert float(found.min()) == 0
    assert float(found.max()) == 1


def test_percentiles_are_those_of_each_channel() -> None:
    both = image(2) * torch.tensor([1.0, 1000.0])[:, None, None, None]
    found = intensity_scaling("image")({"image": both})["image"]
    assert found.flatten(1).max(1).values.tolist() == [1, 1]
    assert 0.2 < float(found[0].mean()) < 0.8


def test_an_image_must_have_a_channel_for_each_window() -> None:
    with pytest.raises(ValueError, match="an entry for each channel, got 2 for an image with 1"):
        ScaleChannelsd("image", [(0, 1), None])({"image": image(1)})


def test_the_window_is_what_the_scaling_maps() -> None:
    assert scaling_window(ScaleIntensityRanged("image", a_min=-160, a_max=240, b_min=0, b_max=1)) == (-160, 240)
    assert scaling_window(ScaleIntensityRangePercentilesd("image", lower=1, upper=99, b_min=0, b_max=1)) is None
    assert scaling_window(intensity_scaling("image", [[-160, 240], None])) == [(-160, 240), None]
