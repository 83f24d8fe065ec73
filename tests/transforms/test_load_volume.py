from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, Orientationd

from dinomix_monai.transforms import LabelOnGridd, LoadVolumed

AFFINE = np.array([[0, -2.0, 0, 40], [1.5, 0, 0, -7], [0, 0, 3, 12], [0, 0, 0, 1]])


@pytest.fixture
def case(save, noise):
    """An image and its label, which has the classes 0, 1 and 2."""
    array = np.abs(noise()) % 3
    return {"image": save("image.nii.gz", noise(), AFFINE), "label": save("label.nii.gz", array, AFFINE, np.uint8)}


def load(case, num_classes=3):
    return Compose([LoadVolumed(["image", "label"]), LabelOnGridd("label", num_classes)])(case)


def test_volumes_come_with_a_channel_and_the_affine_of_the_file(case, noise):
    loaded = load(case)
    np.testing.assert_array_equal(loaded["image"], noise()[None])
    np.testing.assert_array_equal(loaded["label"], np.abs(noise())[None] % 3)
    for key in case:
        np.testing.assert_allclose(loaded[key].affine, AFFINE, atol=1e-6)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_a_label_in_another_orientation_has_the_voxels_of_its_image(case, order, flips):
    expected = load(case)["label"]
    volume = nib.load(case["label"])
    change = np.column_stack([order, flips])
    array = nib.orientations.apply_orientation(np.array(volume.dataobj), change)
    nib.save(nib.Nifti1Image(array, volume.affine @ nib.orientations.inv_ornt_aff(change, volume.shape)), case["label"])
    found = load(case)["label"]
    assert torch.equal(found, expected)
    assert torch.equal(found.affine, expected.affine)
    assert list(found.meta["spatial_shape"]) == list(expected.shape[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda array: array[:-1], r"voxels of their image, got .*label\.nii\.gz, which has 5 x 5 x 4 voxels and its"),
        (
            lambda array: array + 0.5,
            r"whole numbers from 0 to 2, got .*label\.nii\.gz with 120 voxels of others",
        ),
        (lambda array: array + 2, r"whole numbers from 0 to 2, got .* from 3 to 4"),
        (lambda array: array - 1, r"whole numbers from 0 to 2, got .* from -1 to -1"),
        (lambda array: array * np.nan, r"whole numbers from 0 to 2, got .* 120 voxels of others, from nan to nan"),
    ],
    ids=["shape", "halves", "beyond the classes", "below 0", "NaN"],
)
def test_a_label_that_does_not_fit_is_refused(case, save, noise, change, message):
    save("label.nii.gz", change(np.abs(noise()) % 3), AFFINE)
    with pytest.raises(RuntimeError) as caught:
        load(case)
    with pytest.raises(ValueError, match=message):
        raise caught.value.__cause__


def test_a_label_that_lies_elsewhere_is_refused(case, save, noise):
    moved = AFFINE.copy()
    moved[1, 3] += 50
    save("label.nii.gz", np.abs(noise()) % 3, moved)
    with pytest.raises(RuntimeError) as caught:
        load(case)
    with pytest.raises(ValueError, match=r"label\.nii\.gz, which lies up to 50 mm off its image"):
        raise caught.value.__cause__


def test_behind_a_transform_that_moves_the_image_it_is_refused(case):
    steps = [LoadVolumed(["image", "label"]), Orientationd("image", "RAS", labels=None), LabelOnGridd("label", 3)]
    with pytest.raises(RuntimeError) as caught:
        Compose(steps)(case)
    with pytest.raises(RuntimeError, match="LabelOnGridd must come before transforms that move the image"):
        raise caught.value.__cause__


def test_an_image_without_a_label_passes_where_that_is_allowed(case):
    steps = [LoadVolumed(["image", "label"], True), LabelOnGridd("label", 3, allow_missing_keys=True)]
    assert list(Compose(steps)({"image": case["image"]})) == ["image"]
