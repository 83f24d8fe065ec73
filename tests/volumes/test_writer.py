from __future__ import annotations

import errno

import nibabel as nib
import numpy as np
import pytest
from monai.transforms import LoadImage

from dinomix_monai.volumes import (
    is_by_model,
    is_label_map,
    label_on_grid,
    label_path,
    label_volume,
    open_volume,
    write_volume,
)

SHAPE = (5, 4, 3)
AFFINE = np.array([[0, -2.0, 0, 40], [1.5, 0, 0, -7], [0, 0, 3, 12], [0, 0, 0, 1]])


def loaded(path):
    """What MONAI carries of a scan."""
    return LoadImage(image_only=True)(path).meta


@pytest.fixture
def scan(save):
    path = save("a.nii.gz", np.zeros(SHAPE), AFFINE)
    volume = nib.load(path)
    volume.set_qform(np.diag([9.0, 1, 1, 1]) @ AFFINE, 1)  # with another voxel size, which pixdim is then
    volume.set_qform(AFFINE, 1)
    moved = AFFINE.copy()
    moved[2, 3] += 60
    volume.set_sform(moved, 4)
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.float32), None, volume.header), path)
    return path


def test_on_the_grid_of_its_scan_a_label_map_takes_over_all_that_says_where_it_lies(scan):
    header = nib.load(scan).header
    found = label_volume(np.zeros(SHAPE, np.uint8), nib.load(scan).affine, loaded(scan)).header
    np.testing.assert_array_equal(found.get_sform(), header.get_sform())
    np.testing.assert_array_equal(found.get_qform(), header.get_qform())
    assert [int(found[f"{form}_code"]) for form in ("sform", "qform")] == [4, 1]
    assert found.get_zooms() == header.get_zooms()


@pytest.mark.parametrize("shape", [SHAPE, (10, 8, 6)], ids=["moved", "finer"])
def test_on_another_grid_both_forms_are_its_own(scan, shape):
    affine = np.diag([-1.0, 2.0, 2.5, 1])
    found = label_volume(np.zeros(shape, np.uint8), affine, loaded(scan)).header
    for form in (found.get_sform(), found.get_qform()):
        np.testing.assert_allclose(form, affine, atol=1e-6)
    assert [int(found[f"{form}_code"]) for form in ("sform", "qform")] == [1, 1]
    assert found.get_xyzt_units()[0] == "mm"


def test_a_shear_is_in_the_sform_alone():
    affine = AFFINE.copy()
    affine[:3, 2] += 0.3 * affine[:3, 1]
    found = label_volume(np.zeros(SHAPE, np.uint8), affine, {"spatial_shape": SHAPE}).header
    np.testing.assert_allclose(found.get_sform(), affine, atol=1e-6)
    assert [int(found[f"{form}_code"]) for form in ("sform", "qform")] == [1, 0]


def test_its_header_says_that_it_is_a_label_map(scan, tmp_path):
    volume = label_volume(np.ones(SHAPE, np.uint8), AFFINE, loaded(scan))
    path = write_volume(volume, label_path(tmp_path / "new", scan))
    assert path == tmp_path / "new" / "a_seg.nii.gz"
    assert is_label_map(open_volume(path))
    assert not is_label_map(open_volume(scan))
    assert is_by_model(open_volume(path))
    assert (np.asarray(nib.load(path).dataobj) == 1).all()
    assert not is_by_model(open_volume(write_volume(label_on_grid(np.ones(SHAPE), volume.header), path)))


def test_a_full_disk_is_called_so_and_leaves_what_was_there(scan, tmp_path, monkeypatch):
    volume = label_volume(np.ones(SHAPE, np.uint8), AFFINE, {})
    path = write_volume(volume, tmp_path / "b_seg.nii.gz")
    before = path.read_bytes()

    def fill(image, stream):
        stream.write(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", fill)
    message = r"b_seg\.nii\.gz must be a file that can be written to, got: No space left on device"
    with pytest.raises(OSError, match=message) as caught:
        write_volume(volume, path)
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.nii.gz", "b_seg.nii.gz"]
