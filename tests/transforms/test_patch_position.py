from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    Flipd,
    LoadImaged,
    Orientationd,
    RandFlipd,
    RandRotate90d,
    RandSpatialCropd,
    Rotate90d,
    Spacingd,
    SpatialCropd,
    Zoomd,
)

from dinomix_monai.transforms import PatchPositiond

SHAPE = (12, 10, 8)
OBLIQUE = np.array([[-1.4, 0.3, 0, 20], [0.2, 1.9, -0.4, -7], [0.1, 0.5, 2.5, 3], [0, 0, 0, 1]])


@pytest.fixture(params=["straight", "oblique"])
def file(request, tmp_path):
    """A NIfTI whose voxels hold their own indices, one axis in each channel."""
    affine = np.diag([-1.5, -1.5, 3.0, 1.0]) if request.param == "straight" else OBLIQUE
    return save(tmp_path, affine)


def save(folder, affine, shape=SHAPE):
    indices = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    nib.save(nib.Nifti1Image(indices.astype(np.float32), affine), folder / "image.nii")
    return folder / "image.nii"


def patch_of(file, *transforms, seed=0):
    load = LoadImaged("image", ensure_channel_first=True)
    return Compose([load, *transforms, PatchPositiond("image")]).set_random_state(seed)({"image": str(file)})


def offset_by_content(image, volume_shape=SHAPE):
    """The offset from what the voxels say of themselves, by which no affine is needed."""
    dims = image.ndim - 1
    content = image.numpy().astype(float)
    step = np.stack([np.diff(content, axis=1 + axis).reshape(dims, -1).mean(1) for axis in range(dims)], axis=1)
    center = content.reshape(dims, -1).mean(1)
    return np.linalg.solve(step, center - (np.array(volume_shape) - 1) / 2)


def test_the_whole_volume_lies_at_0(file):
    assert torch.allclose(patch_of(file)["position"], torch.zeros(3), atol=1e-4)


def test_a_crop_lies_where_it_was_counted_by_hand(file):
    # Voxels 0-3 of 12, 6-9 of 10 and 2-5 of 8: centers 1.5, 7.5 and 3.5, those of the volume 5.5, 4.5 and 3.5.
    position = patch_of(file, SpatialCropd("image", roi_start=(0, 6, 2), roi_end=(4, 10, 6)))["position"]
    assert position.dtype == torch.float32
    assert torch.allclose(position, torch.tensor([-4.0, 3.0, 0.0]), atol=1e-4)


def test_a_flip_changes_the_sign_along_its_axis(file):
    crop = SpatialCropd("image", roi_start=(0, 6, 2), roi_end=(4, 10, 6))
    position = patch_of(file, crop, Flipd("image", spatial_axis=0))["position"]
    assert torch.allclose(position, torch.tensor([4.0, 3.0, 0.0]), atol=1e-4)


def test_a_rotation_by_90_degrees_exchanges_axes(file):
    crop = SpatialCropd("image", roi_start=(0, 6, 2), roi_end=(4, 10, 6))
    position = patch_of(file, crop, Rotate90d("image", k=1, spatial_axes=(0, 1)))["position"]
    # As torch.rot90: what lay along axis 1 lies along axis 0 backwards, what lay along axis 0 along axis 1.
    assert torch.allclose(position, torch.tensor([-3.0, -4.0, 0.0]), atol=1e-4)


def test_a_spacing_gives_the_offset_in_new_voxels(tmp_path):
    file = save(tmp_path, np.diag([1.0, 1.0, 2.0, 1.0]))
    halved = Spacingd("image", pixdim=(2.0, 1.0, 1.0), align_corners=True)
    crop = SpatialCropd("image", roi_start=(0, 1, 2), roi_end=(2, 5, 6))
    image, position = (patch_of(file, halved, crop)[key] for key in ("image", "position"))
    assert np.allclose(position, offset_by_content(image), atol=1e-3)
    # Voxels 0-1 of 2 mm: center 1 mm of 5.5; 1-4 of 1 mm: 2.5 of 4.5; 2-5 of 1 mm: 3.5 mm of 7.
    assert np.allclose(position, [-2.25, -2.0, -3.5], atol=1e-3)


@pytest.mark.parametrize("zoom", [0.5, 2.0])
def test_a_zoom_gives_the_offset_in_new_voxels(file, zoom):
    # Voxels 2-9 of 12, 4-9 of 10 and 0-5 of 8: centers 5.5, 6.5 and 2.5, those of the volume 5.5, 4.5 and 3.5.
    crop = SpatialCropd("image", roi_start=(2, 4, 0), roi_end=(10, 10, 6))
    zoomed = Zoomd("image", zoom=zoom, mode="trilinear", keep_size=False)
    assert np.allclose(patch_of(file, crop, zoomed)["position"], zoom * np.array([0.0, 2.0, -1.0]), atol=1e-3)


def test_a_zoom_and_a_crop_agree_with_the_content(file):
    zoomed = Zoomd("image", zoom=2.0, mode="trilinear", keep_size=False)
    # Within the border, beyond which nothing can be interpolated.
    crop = SpatialCropd("image", roi_start=(2, 7, 4), roi_end=(6, 12, 9))
    image, position = (patch_of(file, zoomed, crop)[key] for key in ("image", "position"))
    assert np.allclose(position, offset_by_content(image), atol=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_a_chain_of_random_transforms_is_followed(file, seed):
    chain = (
        Orientationd("image", axcodes="RAS", labels=None),
        RandSpatialCropd("image", roi_size=(6, 5, 4), random_size=False),
        *(RandFlipd("image", prob=0.5, spatial_axis=axis) for axis in range(3)),
        RandRotate90d("image", prob=0.5, max_k=3, spatial_axes=(0, 2)),
    )
    result = patch_of(file, *chain, seed=seed)
    assert result["position"].abs().max() > 0.4  # not the center, where every mistake is 0
    assert np.allclose(result["position"], offset_by_content(result["image"]), atol=1e-3)


def test_two_dimensions_are_followed():
    content = np.stack(np.meshgrid(np.arange(12), np.arange(10), indexing="ij")).astype(np.float32)
    affine = torch.diag(torch.tensor([-2.0, 1.5, 1.0]))
    image = MetaTensor(content, affine=affine, meta={"original_affine": affine, "spatial_shape": np.array([12, 10])})
    crop = SpatialCropd("image", roi_start=(1, 5), roi_end=(4, 10))
    result = Compose([crop, Flipd("image", spatial_axis=1), PatchPositiond("image")])({"image": image})
    # Center 2 of 5.5, and 7 of 4.5, flipped.
    assert result["position"].tolist() == pytest.approx([-3.5, -2.5])
    assert np.allclose(result["position"], offset_by_content(result["image"], (12, 10)))


def test_the_entry_may_have_another_name_and_the_sample_is_left_unchanged(file):
    sample = LoadImaged("image", ensure_channel_first=True)({"image": str(file)})
    keys = set(sample)
    result = PatchPositiond("image", position_key="offset")(sample)
    assert set(result) - keys == {"offset"}
    assert set(sample) == keys


def test_an_image_without_a_place_is_refused():
    with pytest.raises(TypeError, match=r"image must be a MetaTensor, whose affine tells where it lies, got Tensor\."):
        PatchPositiond("image")({"image": torch.zeros(1, 4, 4, 4)})


def test_a_missing_key_may_be_allowed():
    assert PatchPositiond("image", allow_missing_keys=True)({}) == {}
    with pytest.raises(KeyError, match="image"):
        PatchPositiond("image")({})
