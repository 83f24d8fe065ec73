from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage

from dinomix_monai.volumes import VolumeReader

AFFINE = np.array([[0, -2.0, 0, 40], [1.5, 0, 0, -7], [0, 0, 3, 12], [0, 0, 0, 1]])


@pytest.fixture
def load():
    loader = LoadImage(image_only=True)
    loader.register(VolumeReader())
    return loader


@pytest.mark.parametrize("dtype", [np.uint8, ">i2", np.float32, np.float64])
@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_sound_file_is_read_as_monai_reads_it(load, save, noise, name, dtype):
    path = save(name, np.abs(noise()), AFFINE, dtype)
    found, expected = load(path), LoadImage(image_only=True)(path)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(found.affine, expected.affine)
    assert {*found.meta} == {*expected.meta}
    np.testing.assert_array_equal(found.meta["original_affine"], expected.meta["original_affine"])


def test_a_scale_is_applied(load, save, noise):
    path = save("a.nii", noise(), dtype=np.int16)
    volume = nib.Nifti1Image(noise().astype(np.int16), AFFINE)
    volume.header.set_slope_inter(0.5, -1024)
    nib.save(volume, path)
    np.testing.assert_allclose(load(path), noise() * 0.5 - 1024)


def test_a_file_whose_pixdim_is_a_little_off_lies_where_its_sform_says(load, save, noise):
    path = save("a.nii", noise(), AFFINE)
    volume = nib.load(path)
    volume.header["pixdim"][1:4] = 1.503, 2, 3
    # Most writers leave the qform empty that they do not use.
    for field in ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"):
        volume.header[field] = 0
    nib.save(nib.Nifti1Image(noise(), None, volume.header), path)
    with pytest.warns(UserWarning, match=r"a\.nii has voxels of 1\.5 x 2 x 3 mm by its sform and of 1\.503 x 2 x 3 mm"):
        found = load(path)
    np.testing.assert_array_equal(found.affine, AFFINE)
    # MONAI's own reader takes the qform, which has no code.
    assert not np.allclose(LoadImage(image_only=True)(path).affine, AFFINE, atol=1)


def test_a_damaged_file_is_named(load, save, noise):
    path = Path(save("a.nii.gz", noise()))
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(ValueError, match=r"got .*a\.nii\.gz, which is gzip of gzip\. Unpack it once"):
        load(path)


def test_names_in_letters_of_any_case_are_its_own():
    reader = VolumeReader()
    assert reader.verify_suffix("A.NII.GZ")
    assert reader.verify_suffix(["a.nii", "b.Nii.gz"])
    assert not reader.verify_suffix(["a.nii", "b.nrrd"])
    assert not reader.verify_suffix("series")


def test_several_files_become_channels(load, save, noise):
    paths = [save(f"{number}.nii", noise(number)) for number in range(2)]
    np.testing.assert_array_equal(load(paths), np.stack([noise(0), noise(1)]))
