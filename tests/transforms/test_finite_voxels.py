from __future__ import annotations

import warnings

import pytest
import torch
from monai.data import MetaTensor

from dinomix_monai.transforms import FiniteVoxelsd


def scan(values: list[float]) -> MetaTensor:
    return MetaTensor(torch.tensor(values).reshape(1, -1, 1, 1), meta={"filename_or_obj": "a.nii.gz"})


def test_what_is_no_number_becomes_the_least_one_and_the_file_is_named() -> None:
    image = scan([3.0, float("nan"), -2.0, float("inf"), float("-inf")])
    with pytest.warns(UserWarning, match=r"a\.nii\.gz has 3 voxels that are NaN or infinite: they count as -2\."):
        found = FiniteVoxelsd("image")({"image": image})["image"]
    assert found.flatten().tolist() == [3, -2, -2, -2, -2]
    assert found.meta["filename_or_obj"] == "a.nii.gz"
    assert image.isnan().any()


def test_a_scan_of_numbers_is_passed_through_in_silence() -> None:
    image = scan([3.0, -2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert FiniteVoxelsd("image")({"image": image})["image"] is image


def test_a_scan_without_any_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Images must have voxels that are numbers, got a\.nii\.gz with none"):
        FiniteVoxelsd("image")({"image": scan([float("nan")] * 2)})


def test_each_channel_has_a_least_value_of_its_own() -> None:
    image = torch.cat([scan([3.0, float("nan"), -2.0]), scan([700.0, 500.0, float("inf")])])
    with pytest.warns(UserWarning, match="NaN or infinite") as warned:
        found = FiniteVoxelsd("image")({"image": image})["image"]
    assert found.flatten(1).tolist() == [[3, -2, -2], [700, 500, 500]]
    assert len(warned) == 2
    with pytest.raises(ValueError, match="must have voxels that are numbers"):
        FiniteVoxelsd("image")({"image": torch.cat([scan([1.0]), scan([float("nan")])])})
