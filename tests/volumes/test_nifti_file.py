from __future__ import annotations

import gzip
import math
import tracemalloc
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dinomix_monai.volumes import (
    VolumeError,
    image_values,
    is_label_map,
    is_nifti_name,
    is_single_volume,
    label_values,
    nifti_stem,
    open_volume,
)

ANEW = "Copy or export it anew."
CONVERT = "Convert it to NIfTI."
SPLIT = "Split it: each file must be one volume of three axes. Channels go into a file each."


@pytest.fixture
def small_pieces(monkeypatch):
    """Volumes are read seven voxels at a time."""
    monkeypatch.setitem(image_values.__globals__, "_PIECE", 7)


def gigantic_header(dtype=np.int16):
    """The header of a volume that no memory would hold."""
    header = nib.Nifti1Header()
    header.set_data_shape((32767, 32767, 32767))
    header.set_data_dtype(dtype)
    header["vox_offset"] = 352
    return header.binaryblock + bytes(4)


def packed(content):
    """Without the time, which would give a test another name in each process that runs some of the tests."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 3, 4), True),
        ((2, 3, 4, 1), True),
        ((2, 3, 4, 1, 1), False),
        ((2, 3), False),
        ((2, 3, 4, 5), False),
        ((2, 3, 4, 1, 3), False),
    ],
)
def test_a_single_volume_has_three_axes_or_a_fourth_of_length_1(shape, expected):
    assert is_single_volume(shape) == expected


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, ">i2", np.int32, np.float32, ">f8"])
@pytest.mark.usefixtures("small_pieces")
def test_values_of_an_image_are_those_of_the_whole_array(save, noise, name, dtype):
    array = np.abs(noise())
    values = image_values(open_volume(save(name, array, dtype=dtype)), (20, 60))
    assert (values.low, values.high, values.not_finite) == (array.min(), array.max(), 0)
    assert values.outside == pytest.approx(((array < 20) | (array > 60)).mean())


@pytest.mark.usefixtures("small_pieces")
def test_values_are_scaled_as_the_header_says(save, noise):
    path = save("a.nii", noise(), dtype=np.int16)
    content = bytearray(Path(path).read_bytes())
    content[112:120] = np.array([0.5, -1024], "<f4").tobytes()  # scl_slope and scl_inter of the NIfTI standard
    Path(path).write_bytes(content)
    expected = noise() * 0.5 - 1024
    values = image_values(open_volume(path), (-1024, -1000))
    assert (values.low, values.high) == (expected.min(), expected.max())
    assert values.outside == pytest.approx(((expected < -1024) | (expected > -1000)).mean())


def test_only_finite_values_count_in_the_range(save, noise):
    array = noise().astype(np.float32)
    array[0, 0, :3] = math.nan, math.inf, -math.inf
    values = image_values(open_volume(save("a.nii", array)))
    assert (values.low, values.high) == (array[np.isfinite(array)].min(), array[np.isfinite(array)].max())
    assert values.not_finite == 3
    assert values.outside == 0


def test_without_a_finite_value_the_range_is_empty(save):
    values = image_values(open_volume(save("a.nii", np.full((2, 2, 2), math.nan))))
    assert (values.low, values.high, values.not_finite) == (math.inf, -math.inf, 8)


def test_the_same_volume_has_the_same_digest_however_it_is_stored(save, noise):
    stored = [
        *(save(name, noise(), dtype=np.int16) for name in ("a.nii", "a.nii.gz")),
        *(save(f"{i}.nii", noise(), dtype=dtype) for i, dtype in enumerate((np.float32, np.float64, ">i4"))),
        save("b.nii", noise()[..., None]),
    ]
    assert len({image_values(open_volume(path)).digest for path in stored}) == 1


def test_another_voxel_or_another_shape_gives_another_digest(save, noise):
    array = noise()
    other = array.copy()
    other[-1, -1, -1] += 1
    same_bytes = array.ravel(order="F").reshape((5, 6, 4), order="F")
    paths = [save(f"{i}.nii", content) for i, content in enumerate((array, other, same_bytes))]
    assert len({image_values(open_volume(path)).digest for path in paths}) == 3


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_classes_of_a_label_are_those_that_it_has(save, dtype):
    array = np.zeros((4, 4, 4))
    array[0, 0, 0], array[-1, -1, -1] = 1, 3
    values = label_values(open_volume(save("a.nii.gz", array, dtype=dtype)), 5)
    assert values.classes == {0, 1, 3}
    assert values.strays == 0
    assert math.isnan(values.low)
    assert math.isnan(values.high)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    ("strays", "low", "high"),
    [([-1, 5, 5], -1, 5), ([0.5], 0.5, 0.5), ([math.nan, 255], 255, 255), ([math.inf, -math.inf], -math.inf, math.inf)],
)
def test_values_that_are_no_class_are_counted(save, strays, low, high):
    array = np.zeros((4, 4, 4))
    array[0, 0, : len(strays)] = strays
    array[-1] = 4
    values = label_values(open_volume(save("a.nii", array)), 5)
    assert values == ((48 - len(strays), 0, 0, 0, 16), len(strays), low, high)
    assert values.classes == {0, 4}


def test_a_volume_is_never_in_memory_as_a_whole(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((256, 256, 256))
    header.set_data_dtype(np.uint8)
    header["vox_offset"] = 352
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(4 + 256**3), 1))
    volume = open_volume(tmp_path / "a.nii.gz")
    tracemalloc.start()
    try:
        assert image_values(volume).high == 0
        assert label_values(volume, 2).classes == {0}
        assert tracemalloc.get_traced_memory()[1] < 256**3  # a byte for each voxel, and as float32 there are four
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "content", "problem", "remedy"),
    [
        ("a.nii", None, "does not exist", "Put the file there, or take the case out of the list."),
        ("a.mha", b"", "is not named .nii or .nii.gz", CONVERT),
        ("a.nii", b"", "is an empty file", ANEW),
        ("a.nii.gz", b"", "is an empty file", ANEW),
        ("a.nii.gz", b"no image", "is not NIfTI, whatever its name", CONVERT),
        ("a.nii.gz", gigantic_header(), "is not packed, whatever its name", "Rename it to .nii."),
        ("a.NII", packed(gigantic_header()), "is packed with gzip, whatever its name", "Rename it to .nii.gz."),
        ("a.nii.gz", packed(packed(gigantic_header())), "is gzip of gzip", "Unpack it once."),
        ("a.nii.gz", packed(gigantic_header())[:12], "is cut short or damaged", ANEW),
        ("a.nii.gz", packed(b"no image"), "is not NIfTI, whatever its name", CONVERT),
        ("a.nii", gigantic_header()[:347], "has a header that cannot be read", ANEW),
        ("a.nii", gigantic_header() + bytes(100), f"is cut short, 452 of {352 + 2 * 32767**3} bytes", ANEW),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, name, content, problem, remedy):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(VolumeError) as error:
        open_volume(tmp_path / name)
    assert (error.value.problem, error.value.remedy) == (problem, remedy)
    assert str(error.value) == f"{problem}. {remedy}"


def test_a_header_with_an_unknown_type_of_voxels_is_refused(save, noise):
    path = Path(save("a.nii", noise()))
    content = bytearray(path.read_bytes())
    content[70:72] = (77).to_bytes(2, "little")  # datatype
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=r"has a header that cannot be read\. Copy or export it anew\."):
        open_volume(path)


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "a.nii").mkdir()
    with pytest.raises(VolumeError, match=r"is a folder\. Name the NIfTI file \(\.nii, \.nii\.gz\) itself\."):
        open_volume(tmp_path / "a.nii")


RGB = [("R", "u1"), ("G", "u1"), ("B", "u1")]


@pytest.mark.parametrize(
    ("array", "problem", "remedy"),
    [
        (np.zeros((2, 3)), "has 2 axes (2 x 3)", "Stack its slices: each file must be one volume of three axes."),
        (np.zeros((2, 3, 4, 5)), "has the shape 2 x 3 x 4 x 5", SPLIT),
        (np.zeros((2, 3, 4, 1, 3)), "has several values for each voxel (2 x 3 x 4 x 1 x 3)", "Keep one of them."),
        (
            np.zeros((2, 0, 4)),
            "is empty, its shape is 2 x 0 x 4",
            "Export it anew, or take the case out of the list.",
        ),
        (np.zeros((2, 3, 4), RGB), "has 3 channels", "Write each to a file of its own, or keep one of them."),
        (np.zeros((2, 3, 4), complex), "has complex values", "Keep their magnitude."),
    ],
    ids=["slice", "4D", "vectors", "empty", "RGB", "complex"],
)
def test_what_is_not_one_volume_of_one_channel_is_refused(save, array, problem, remedy):
    with pytest.raises(VolumeError) as error:
        open_volume(save("a.nii", array, dtype=array.dtype))
    assert (error.value.problem, error.value.remedy) == (problem, remedy)


@pytest.mark.parametrize("read", [image_values, lambda volume: label_values(volume, 2)], ids=["image", "label"])
def test_a_gzip_that_ends_early_is_refused_when_it_is_read(save, noise, read):
    path = Path(save("a.nii.gz", noise(shape=(20, 20, 20))))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    volume = open_volume(path)
    with pytest.raises(VolumeError, match=rf"is cut short or damaged\. {ANEW}"):
        read(volume)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9])
def test_a_gzip_with_a_wrong_bit_is_refused_when_it_is_read(save, noise, place):
    path = Path(save("a.nii.gz", noise(shape=(20, 20, 20))))
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(VolumeError, match="is cut short or damaged"):
        image_values(open_volume(path))


def test_a_gzip_that_could_not_be_so_long_is_refused_when_it_is_opened(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(gigantic_header()))
    with pytest.raises(VolumeError, match=r"is cut short, \d+ packed bytes cannot be 70362301923678"):
        open_volume(tmp_path / "a.nii.gz")


def test_a_volume_that_packs_very_well_is_not(tmp_path):
    path = tmp_path / "a.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((128, 128, 128), dtype=np.float32), np.eye(4)), path)
    assert open_volume(path).shape == (128, 128, 128)


@pytest.mark.parametrize("name", ["a.NII", "a.Nii.GZ", "a.nii.GZ"])
def test_the_case_of_a_name_does_not_matter(save, noise, tmp_path, name):
    # nibabel would correct the name.
    path = Path(save(name.lower(), noise())).rename(tmp_path / name)
    assert is_nifti_name(path)
    assert nifti_stem(path) == "a"
    assert image_values(open_volume(path)).high == noise().max()


@pytest.mark.parametrize("sizes", [(0, 2, 3), (-2, 2, 3), (2, 2, math.nan)])
def test_a_voxel_size_that_is_none_is_refused_although_nibabel_corrects_it(save, noise, sizes):
    path = Path(save("a.nii", noise()))
    content = bytearray(path.read_bytes())
    content[80:92] = np.array(sizes, "<f4").tobytes()  # pixdim of the three axes
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=r"has voxels of .* mm by its pixdim"):
        open_volume(path)


def test_a_header_that_contradicts_itself_is_refused_where_it_is_opened(save, noise):
    path = save("a.nii.gz", noise())
    volume = nib.load(path)
    volume.header["pixdim"][1:4] = 1
    nib.save(volume, path)
    with pytest.raises(VolumeError, match="has voxels of 2 x 2 x 3 mm by its sform and of 1 x 1 x 1 mm by its pixdim"):
        open_volume(path)


def test_a_label_map_is_told_by_its_intent(save, noise):
    assert not is_label_map(open_volume(save("a.nii", noise())))
    volume = nib.load(save("b.nii", noise()))
    volume.header.set_intent("label")
    nib.save(volume, save("c.nii", noise()))
    assert is_label_map(open_volume(volume.get_filename().replace("b.nii", "c.nii")))
