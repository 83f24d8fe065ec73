from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Spacingd

from dinomix_monai.transforms import SafeSpacingd


def sample(**others: object) -> dict[str, object]:
    meta = {"filename_or_obj": "case.nii.gz"}
    return {"image": MetaTensor(torch.rand(1, 8, 6, 4), affine=np.diag([1, 2, 3, 1]), meta=meta), **others}


def test_monai_fails_where_this_does_not() -> None:
    with pytest.raises(AttributeError, match="update"):
        Spacingd("image", pixdim=[2, 2, 2])(sample(image_path="case.nii.gz"))
    others = {"image_path": "case.nii.gz", "image_id": 7, "other": "text"}
    resampled = SafeSpacingd("image", pixdim=[2, 2, 2])(sample(**others))
    assert {name: resampled[name] for name in others} == others


def test_it_resamples_and_inverts_as_monai_does() -> None:
    data = sample()
    mine, reference = (kind("image", pixdim=[2, 2, 2]) for kind in (SafeSpacingd, Spacingd))
    resampled, expected = mine(data), reference(data)
    assert torch.equal(resampled["image"], expected["image"])
    assert torch.equal(resampled["image"].affine, expected["image"].affine)
    back = mine.inverse(resampled)["image"]
    assert back.shape == data["image"].shape
    assert torch.equal(back, reference.inverse(expected)["image"])


def test_dictionaries_of_metadata_are_updated_as_monai_does() -> None:
    resampled = SafeSpacingd("image", pixdim=[4, 4, 4])(sample(image_meta_dict={}))
    assert resampled["image_meta_dict"]["filename_or_obj"] == "case.nii.gz"
    assert resampled["image"].shape == (1, 3, 4, 3)


@pytest.mark.parametrize(("spacing", "shape"), [(1e5, "3500001 x 500001 x 3"), (float("nan"), "nan x nan x 3")])
def test_a_volume_that_no_memory_would_hold_is_refused(spacing: float, shape: str) -> None:
    data = sample()
    data["image"].affine = torch.diag(torch.tensor([spacing, spacing, 3.0, 1.0]))
    message = f"Images must have at most 2\\^31 voxels when resampled, got case.nii.gz with {shape}. Correct"
    with pytest.raises(ValueError, match=message):
        SafeSpacingd("image", pixdim=[0.2, 1, 4])(data)


@pytest.mark.parametrize("pixdim", [[1e-9, 2, 3], [2], [-1, 2, 3], [0, 1e9, 3]])
def test_the_size_that_is_looked_at_is_that_of_the_result(pixdim: list[float], monkeypatch) -> None:
    data, most = sample(), 500
    monkeypatch.setitem(SafeSpacingd._check_size.__globals__, "_MOST_VOXELS", most)
    size = 10**9 if pixdim[0] == 1e-9 else Spacingd("image", pixdim=pixdim)(data)["image"].numel()
    if size <= most:
        assert SafeSpacingd("image", pixdim=pixdim)(data)["image"].numel() == size
    else:
        with pytest.raises(ValueError, match="Images must have at most"):
            SafeSpacingd("image", pixdim=pixdim)(data)
