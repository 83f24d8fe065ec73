from __future__ import annotations

import torch
from monai.data import MetaTensor

from dinomix_monai.engines import PlainPrepareBatch


def test_image_and_label_become_plain_tensors_of_the_same_values():
    batch = {key: MetaTensor(torch.rand(2, 1, 4, 4, 4), meta={"filename_or_obj": "a"}) for key in ("image", "label")}
    image, label = PlainPrepareBatch()(batch)
    assert type(image) is type(label) is torch.Tensor
    assert torch.equal(image, batch["image"].as_tensor())
    assert torch.equal(label, batch["label"].as_tensor())
    assert isinstance(batch["image"], MetaTensor)


def test_without_a_label_there_is_none():
    image, label = PlainPrepareBatch()({"image": MetaTensor(torch.rand(1, 1, 4, 4, 4))})
    assert type(image) is torch.Tensor
    assert label is None


def test_other_arguments_reach_the_tensors():
    batch = {"image": torch.rand(1, 1, 4, 4, 4), "label": torch.ones(1, 1, 4, 4, 4)}
    image, label = PlainPrepareBatch()(batch, torch.device("meta"), dtype=torch.float64)
    assert image.dtype == torch.float64
    assert image.device.type == label.device.type == "meta"
