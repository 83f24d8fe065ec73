from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import NibabelReader
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


@pytest.mark.parametrize("scale", [(1, 0), (1, -1024), (0.1, 0), (-1 / 3, 7.7), (np.nan, 5)])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "i8", "f4", "f8"])
@pytest.mark.parametrize(("kind", "name"), [(nib.Nifti1Image, "a.nii.gz"), (nib.Nifti2Image, "a.nii")])
def test_every_bit_is_that_of_double_precision_rounded_once(load, tmp_path, kind, name, dtype, order, scale):
    # 37 slices are two pieces of 16 and a part of one.
    array = np.random.default_rng(0).integers(0, 256, (5, 6, 37, 1)).astype(order + dtype)
    if dtype in ("i4", "i8", "f8"):
        array[:2] += 2**25 + 1
    if dtype[0] == "f":
        array += np.asarray(0.1, array.dtype)
        array[0, 0, :3, 0] = np.nan, np.inf, -0.0
    header = kind.header_class(endianness=order)
    header.set_data_dtype(array.dtype)
    header.set_sform(AFFINE, 1)
    header.set_data_shape(array.shape)
    header.set_zooms((1.5, 2, 3, 1))
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = *scale, 352 if kind is nib.Nifti1Image else 544
    content = header.binaryblock + bytes(4) + array.tobytes(order="F")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found, expected = load(tmp_path / name), LoadImage(image_only=True)(tmp_path / name)
    assert found.dtype == torch.float32
    assert found.stride() == expected.stride()
    np.testing.assert_array_equal(found.numpy().view(np.int32), expected.numpy().view(np.int32))


@pytest.mark.parametrize("damage", ["cut short", "another checksum"])
def test_a_gzip_that_is_damaged_is_named(load, save, noise, damage):
    path = Path(save("a.nii.gz", noise(shape=(20, 20, 32))))
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content[: len(content) // 2] if damage == "cut short" else content)
    with pytest.raises(ValueError, match=r"got .*a\.nii\.gz, which is cut short or damaged\. Copy or export it anew"):
        load(path)


def test_a_volume_is_never_in_double_precision_as_a_whole(load, save):
    array = np.ones((32, 32, 512), np.int16)
    path = save("a.nii.gz", array, dtype=np.int16)
    volume = nib.Nifti1Image(array, AFFINE)
    volume.header.set_slope_inter(0.5, -1024)
    nib.save(volume, path)
    tracemalloc.start()
    try:
        load(path)
        assert tracemalloc.get_traced_memory()[1] < 1.5 * 4 * array.size
    finally:
        tracemalloc.stop()


def test_an_image_that_is_turned_when_it_is_read_is_read_as_monai_reads_it(save, noise):
    path = save("a.nii", noise(), AFFINE)
    found, expected = (
        reader.get_data(reader.read(path))[0]
        for reader in (VolumeReader(as_closest_canonical=True), NibabelReader(as_closest_canonical=True))
    )
    np.testing.assert_array_equal(found, expected)


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
