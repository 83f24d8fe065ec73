from __future__ import annotations

import pytest
import torch
from monai.data import MetaTensor

from dinomix_monai.transforms import PatchToDeviced


def test_what_is_there_already_stays_what_it_is() -> None:
    sample = {"image": MetaTensor(torch.rand(1, 4, 4, 4)), "name": "a"}
    result = PatchToDeviced(["image", "label"], "cpu", allow_missing_keys=True)(sample)
    assert result == sample
    assert result["image"].data_ptr() == sample["image"].data_ptr()


def test_a_missing_patch_is_an_error_unless_it_may_be() -> None:
    with pytest.raises(KeyError, match="label"):
        PatchToDeviced("label", "cpu")({})


@pytest.mark.gpu
def test_a_part_of_a_volume_goes_to_the_gpu_with_all_that_is_known_of_it() -> None:
    volume = MetaTensor(torch.rand(1, 8, 8, 8), affine=torch.diag(torch.tensor([2.0, 3, 4, 1])), meta={"name": "a"})
    patch = PatchToDeviced("image", "cuda")({"image": volume[:, 2:6, 1:5, 4:]})["image"]
    assert patch.is_cuda
    assert torch.equal(patch.cpu().as_tensor(), volume[:, 2:6, 1:5, 4:].as_tensor())
    assert patch.meta["name"] == "a"
    assert torch.equal(patch.affine, volume.affine)
