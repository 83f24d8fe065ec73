from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, Orientation, RandSpatialCrop, Spacing, SpatialPad

from dinomix_monai.data import Datalist, make_phantom, open_datalist, patch_voxels
from dinomix_monai.engines import PseudoLabeler

PATCH, SPACING = (4, 3, 3), (2.0, 2.0, 3.0)


@pytest.fixture
def datalist(save):
    """Two labeled volumes of unlike size, one of them stored along other axes and in other directions."""
    random = np.random.default_rng(0)
    turned = np.array([[0, 0, -2, 30], [2, 0, 0, -7], [0, 3, 0, 4], [0, 0, 0, 1.0]])
    files = [
        save("a.nii", random.integers(0, 3, (7, 6, 5)), np.diag([-2, -2, 3, 1]), np.uint8),
        save("b.nii", random.integers(0, 3, (5, 4, 8)), turned, np.uint8),
    ]
    return Datalist(("background", "one", "two"), [{"label": file} for file in files], [], [], [])


def preprocessed(file, spacing_mm):
    """A label as training has it (by MONAI)."""
    volume = nib.load(file)
    steps = Compose(
        [
            Orientation("RAS", labels=None),
            Spacing(spacing_mm, mode="nearest"),
            SpatialPad(PATCH),
        ]
    )
    return steps(MetaTensor(torch.from_numpy(np.array(volume.dataobj))[None], affine=volume.affine))[0].numpy()


def of_all_patches(label):
    """Voxels of each class in a patch, mean over all places where one fits."""
    places = [range(side - patch + 1) for side, patch in zip(label.shape, PATCH)]
    counts = [
        np.bincount(label[tuple(slice(a, a + n) for a, n in zip(start, PATCH))].astype(int).ravel(), minlength=3)
        for start in itertools.product(*places)
    ]
    return np.mean(counts, axis=0)


@pytest.mark.parametrize("spacing_mm", [SPACING, (-1, -1, -1)], ids=["the files' own", "as they are"])
def test_it_is_the_mean_over_all_places_of_a_patch(datalist, spacing_mm):
    expected = sum(of_all_patches(preprocessed(case["label"], SPACING)) for case in datalist.training)
    np.testing.assert_allclose(patch_voxels(datalist, PATCH, spacing_mm), expected, rtol=1e-6)


def test_resampling_changes_it_as_it_changes_the_volumes(save):
    # Blocks, whose voxels a resampling does not scatter.
    array = np.zeros((24, 20, 16))
    array[3:15, 5:12, 2:9], array[16:22, 12:18, 9:14] = 1, 2
    file = save("a.nii", array, np.diag([-1.0, 1.5, 2.0, 1]), np.uint8)
    datalist = Datalist(("background", "one", "two"), [{"label": file}], [], [], [])
    expected = of_all_patches(preprocessed(file, (2.0, 2.0, 3.0)))
    assert expected.min() > 0.5
    np.testing.assert_allclose(patch_voxels(datalist, PATCH, (2.0, 2.0, 3.0)), expected, rtol=0.1)


def test_what_a_small_volume_is_padded_with_is_background(save):
    file = save("a.nii", np.ones((2, 2, 2)), np.diag([2, 2, 3, 1]), np.uint8)
    assert patch_voxels(Datalist(("background", "one"), [{"label": file}], [], [], []), PATCH, SPACING) == [28, 8]


def test_without_labels_there_are_none():
    assert patch_voxels(Datalist(("background", "one"), [], [{"image": "a.nii"}], [], []), PATCH, SPACING) == [0, 0]


def test_values_that_are_no_classes_are_refused(save):
    file = save("a.nii", np.full((4, 4, 4), 0.99999))
    with pytest.raises(ValueError, match=r"whole numbers below 2 .* got 0\.99999 to 0\.99999 in .*a\.nii"):
        patch_voxels(Datalist(("background", "one"), [{"label": file}], [], [], []), PATCH, SPACING)


def test_a_teacher_that_knows_everything_is_not_corrected(tmp_path):
    """Of random patches of the labeled volumes, each class has the share that they should have."""
    spacing_mm, patch_size = (8.0, 8.0, 10.0), (32, 32, 16)
    datalist = open_datalist(
        make_phantom(tmp_path, cases=(3, 0, 0, 0), size=(40, 40, 28), spacing_mm=spacing_mm).parent
    )
    expected = patch_voxels(datalist, patch_size, spacing_mm)
    labels = [torch.from_numpy(nib.load(case["label"]).get_fdata())[None] for case in datalist.training]
    crop = RandSpatialCrop(patch_size, random_size=False).set_random_state(seed=0)
    found = torch.zeros(datalist.num_classes)
    for number in range(600):
        # Stored along LPS: a patch of a mirrored volume is as probable.
        patch = torch.as_tensor(crop(labels[number % len(labels)])).long()
        found += torch.bincount(patch.flatten(), minlength=datalist.num_classes)
    ratios = {}
    for name, voxels in {"of patches": expected, "of volumes": datalist.training_voxels}.items():
        shares = PseudoLabeler(datalist.num_classes, alignment=1.0, labeled_voxels=voxels).labeled_shares
        ratios[name] = shares / (found / found.sum())
    assert ratios["of patches"].min() > 0.9
    assert ratios["of patches"].max() < 1.1
    assert ratios["of volumes"].min() < 0.8
