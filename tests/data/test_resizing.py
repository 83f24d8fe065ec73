from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.transforms import Resize

from dinomix_monai.data.resizing import resize_image, resize_label, resized_affine, scale_to_unit

SHAPE, SIZE = (20, 15, 7), (8, 24, 5)
# Oblique, flipped and anisotropic.
AFFINE = np.array([[-0.8, 0.1, 0.4, 12.0], [0.15, 0.9, 0.0, -30.0], [0.1, -0.02, 4.9, 7.0], [0, 0, 0, 1]])


def world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Position of every voxel in mm, shape (3, x, y, z)."""
    return np.stack([a.reshape(shape) for a in nib.affines.apply_affine(affine, indices(shape)).T])


def indices(shape: tuple[int, ...]) -> np.ndarray:
    return np.indices(shape).reshape(3, -1).T


def test_a_new_voxel_lies_where_its_affine_says():
    # An image of its own positions is linear, so that interpolation away from the border reproduces it.
    new_affine = resized_affine(AFFINE, SHAPE, SIZE)
    inside = (slice(1, -1), slice(2, -2), slice(1, -1))
    for before, after in zip(world(AFFINE, SHAPE), world(new_affine, SIZE)):
        np.testing.assert_allclose(resize_image(before, SIZE)[inside], after[inside], atol=1e-4)


def test_outer_corners_stay_where_they_are():
    corners = np.array([[-0.5, -0.5, -0.5], [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]])
    new_affine = resized_affine(AFFINE, SHAPE, SIZE)
    old, new = (corners[0] + (corners + (corners == corners[0]) * 0.5) * shape for shape in (SHAPE, SIZE))
    np.testing.assert_allclose(
        nib.affines.apply_affine(AFFINE, old), nib.affines.apply_affine(new_affine, new), atol=1e-9
    )


def test_image_and_affine_are_those_of_monai():
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    volume = MetaTensor(torch.from_numpy(image)[None], affine=torch.from_numpy(AFFINE))
    expected = Resize(SIZE, mode="trilinear", align_corners=False)(volume)
    np.testing.assert_allclose(resize_image(image, SIZE), expected[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(resized_affine(AFFINE, SHAPE, SIZE), expected.affine.numpy(), atol=1e-6)


def test_voxels_are_bit_for_bit_those_of_an_interpolation_in_the_order_of_the_publications():
    hu = np.random.default_rng(0).integers(-1000, 1000, size=SHAPE).astype(np.int16)
    zyx = torch.FloatTensor(hu.transpose(2, 1, 0).astype(np.float32))[None, None]
    expected = F.interpolate(zyx, size=SIZE[::-1], mode="trilinear", align_corners=False)[0, 0].numpy()
    assert (resize_image(hu, SIZE) == expected.transpose(2, 1, 0)).all()


def test_the_same_size_changes_nothing():
    assert (resized_affine(AFFINE, SHAPE, SHAPE) == AFFINE).all()
    image = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    assert (resize_image(image, SHAPE) == image).all()


def test_a_label_is_that_of_the_lower_corner():
    label = np.random.default_rng(0).integers(0, 16, size=SHAPE)
    x, y, z = (np.arange(new) * old // new for old, new in zip(SHAPE, SIZE))
    resized = resize_label(label, SIZE)
    assert resized.dtype == np.uint8
    assert (resized == label[np.ix_(x, y, z)]).all()


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float64, ">i2"])
def test_any_type_of_number_is_resized(dtype):
    label = np.arange(8).reshape(2, 2, 2).astype(dtype)
    assert (resize_label(label, (4, 4, 4))[::2, ::2, ::2] == label).all()
    assert resize_image(label, (4, 4, 4)).dtype == np.float32


def test_values_are_clipped_and_then_scaled_by_what_is_left():
    image = np.array([-1000, -75, 0, 100, 125], dtype=np.float32)
    np.testing.assert_allclose(scale_to_unit(image, (-75, 275)), [0, 0, 0.375, 0.875, 1])
    np.testing.assert_allclose(scale_to_unit(image, (0, 50)), [0, 0, 0, 1, 1])
    assert scale_to_unit(image, (0, 50)).dtype == np.float32


@pytest.mark.parametrize("values", [[300, 400], [5, 5], [0, np.nan]], ids=["outside", "constant", "NaN"])
def test_an_image_without_contrast_is_refused(values):
    with pytest.raises(ValueError, match=r"image must have finite and different values within \[-75, 275\], got"):
        scale_to_unit(np.array(values, dtype=np.float32), (-75, 275))
