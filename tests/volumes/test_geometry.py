from __future__ import annotations

import itertools

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform

from dinomix_monai.volumes import VolumeError, label_orientation, read_geometry, write_placement

SHAPE = (7, 6, 5)
TURN = np.array([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 1.0]])
ELSEWHERE = np.array([[-2.0, 0, 0, 90], [0, -2.0, 0, 80], [0, 0, 3.0, -70], [0, 0, 0, 1]])


def turned(sizes=(2.0, 2.0, 3.0), origin=(10.0, -20.0, 30.0)):
    """An oblique affine."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN @ np.diag(sizes), origin
    return affine


def header(sform=None, qform=None, pixdim=None, units="mm", codes=(2, 1)):
    """A header with the given forms, the others without a code, and then with another pixdim."""
    made = nib.Nifti1Header()
    made.set_data_shape(SHAPE)
    made.set_zooms((2.0, 2.0, 3.0))
    if qform is not None:
        made.set_qform(qform, codes[1])
    if sform is not None:
        made.set_sform(sform, codes[0])
    made.set_xyzt_units(units)
    if pixdim is not None:
        made["pixdim"][1:4] = pixdim
    return made


def stored_as(axcodes, array, affine):
    """The same volume in the same place, with its axes stored in another order and direction (by nibabel)."""
    change = ornt_transform(io_orientation(affine), axcodes2ornt(axcodes))
    return apply_orientation(array, change), affine @ inv_ornt_aff(change, array.shape)


def of(affine, shape=SHAPE):
    return read_geometry(nib.Nifti1Image(np.zeros(shape, np.uint8), affine).header)


@pytest.mark.parametrize(
    "made",
    [
        header(sform=turned()),
        header(qform=turned()),
        header(sform=turned(), qform=ELSEWHERE),
        header(sform=turned(), qform=turned(), codes=(1, 1)),
        header(sform=turned(), pixdim=(2.0001, 2.0, 3.0)),
        # Where MONAI's reader takes the qform, although that has no code.
        header(sform=turned(), pixdim=(2.0018, 2.0018, 3.0)),
        header(sform=turned(), units="unknown"),
    ],
    ids=["sform", "qform", "registered", "both", "rounded", "hardly rounded", "no units"],
)
def test_the_place_is_the_one_that_nibabel_reads(made):
    geometry = read_geometry(made)
    np.testing.assert_allclose(geometry.affine, made.get_best_affine(), atol=1e-5)
    assert geometry.shape == SHAPE
    assert geometry.is_known


@pytest.mark.parametrize(("units", "to_mm"), [("meter", 1000), ("micron", 0.001)])
def test_lengths_are_those_that_itk_reads_whatever_their_unit(tmp_path, units, to_mm):
    sitk = pytest.importorskip("SimpleITK")
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    affine[:3] /= to_mm
    image = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), affine)
    image.header.set_xyzt_units(units)
    nib.save(image, tmp_path / "a.nii")
    found = read_geometry(nib.load(tmp_path / "a.nii").header).affine
    np.testing.assert_allclose(np.diag(found)[:3], (2, 2, 3), rtol=1e-5)
    np.testing.assert_allclose(sitk.ReadImage(str(tmp_path / "a.nii")).GetSpacing(), (2, 2, 3), rtol=1e-5)


def test_without_a_code_the_orientation_is_unknown_and_that_is_said():
    made = header()
    geometry = read_geometry(made)
    assert not geometry.is_known
    np.testing.assert_array_equal(geometry.affine, made.get_base_affine())
    assert nib.aff2axcodes(geometry.affine) == ("L", "A", "S")
    assert geometry.doubt[0].startswith("does not say how the patient lies (sform and qform have code 0)")


def test_a_sound_header_raises_no_doubt():
    assert read_geometry(header(sform=turned(), qform=ELSEWHERE)).doubt is None


def test_a_pixdim_that_differs_a_little_raises_a_doubt():
    doubt = read_geometry(header(sform=turned(), pixdim=(2.01, 2.0, 3.0))).doubt
    problem = "has voxels of 2 x 2 x 3 mm by its sform and of 2.01 x 2 x 3 mm by its pixdim; the former count"
    assert doubt == (problem, "Write the true size into both.")


@pytest.mark.parametrize(
    ("made", "problem"),
    [
        (header(sform=turned(), pixdim=(1, 1, 1)), "has voxels of 2 x 2 x 3 mm by its sform and of 1 x 1 x 1 mm by"),
        (header(sform=turned(), pixdim=(2, 2, 3.05)), "has voxels of 2 x 2 x 3 mm by its sform and of 2 x 2 x 3.05 mm"),
        (header(sform=turned(), pixdim=(2, np.nan, 3)), "has voxels of 2 x 2 x 3 mm by its sform and of 2 x nan x 3"),
        (header(sform=turned((4, 4, 6)), qform=turned()), "has voxels of 4 x 4 x 6 mm by its sform and of 2 x 2 x 3"),
        (header(sform=np.zeros((4, 4))), "has a singular affine"),
        (header(sform=np.full((4, 4), np.nan)), "has a singular affine"),
        (header(sform=np.zeros((4, 4)), qform=turned()), "has a singular affine"),
        (header(sform=np.diag([2, 2, 3, 1]) @ [[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "has a singu"),
        (header(sform=turned((800, 800, 800)), pixdim=(800, 800, 800)), "has voxels of 800 x 800 x 800 mm"),
        (header(sform=turned((0.02, 2, 3)), pixdim=(0.02, 2, 3)), "has voxels of 0.02 x 2 x 3 mm"),
        (header(sform=turned(), units="micron"), "has voxels of 0.002 x 0.002 x 0.003 mm"),
        (header(sform=turned(), qform=ELSEWHERE, codes=(1, 1)), "lies in two places, 1"),
        (header(sform=turned(), qform=turned(origin=(11, -20, 30)), codes=(1, 1)), "lies in two places, 1 mm apart"),
        (header(pixdim=(2, np.inf, 3)), "has a singular affine"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(made, problem):
    with pytest.raises(VolumeError) as error:
        read_geometry(made)
    assert error.value.problem.startswith(problem)


def test_a_turn_that_no_quaternion_can_express_is_no_contradiction():
    """Near 180 degrees the scalar part of a quaternion is lost in single precision."""
    affine, angle = np.eye(4), np.pi - 6e-4
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[:3, :3] *= 0.7
    made = nib.Nifti1Header()
    made.set_data_shape((512, 512, 300))
    for place in (made.set_qform, made.set_sform):
        place(affine, 1)
    far = np.array([511, 511, 299, 1])
    assert np.abs((made.get_sform() - made.get_qform()) @ far).max() > 0.07
    assert read_geometry(made).doubt is None


@pytest.mark.parametrize("axcodes", ["".join(axes) for axes in itertools.product("RL", "AP", "SI")] + ["PIR", "SAL"])
def test_a_label_in_another_orientation_is_turned_to_its_image(axcodes):
    array = np.arange(np.prod(SHAPE)).reshape(SHAPE)
    stored, affine = stored_as(axcodes, array, turned())
    orientation = label_orientation(of(affine, stored.shape), of(turned()))
    np.testing.assert_array_equal(apply_orientation(stored, orientation), array)


def test_a_label_that_lies_elsewhere_is_on_no_grid():
    mirrored, shifted, thicker, one_voxel = (turned() for _ in range(4))
    mirrored[:, 0] *= -1
    shifted[0, 3] += 50
    thicker[:3, 2] *= 1.05
    one_voxel[:3, 3] += one_voxel[:3, 0]
    for affine in (mirrored, shifted, thicker, one_voxel):
        assert label_orientation(of(affine), of(turned())) is None
    assert label_orientation(of(turned(), (7, 6, 4)), of(turned())) is None
    # The axes fit, the sides do not.
    assert label_orientation(of(turned(), (6, 7, 5)), of(turned())) is None


def test_a_label_drawn_in_a_viewer_that_goes_by_the_qform_is_on_the_grid_of_a_registered_scan():
    scan = read_geometry(header(sform=turned(), qform=ELSEWHERE))
    np.testing.assert_array_equal(label_orientation(of(ELSEWHERE), scan), [[0, 1], [1, 1], [2, 1]])
    np.testing.assert_array_equal(label_orientation(scan, of(turned())), [[0, 1], [1, 1], [2, 1]])
    away = ELSEWHERE.copy()
    away[0, 3] += 1
    assert label_orientation(of(away), scan) is None


def test_how_a_label_differs_from_its_image_is_said():
    assert of(turned(), (7, 6, 4)).difference_from_image(of(turned())) == "has 7 x 6 x 4 voxels and its image 7 x 6 x 5"
    shifted = turned(origin=(60, -20, 30))
    assert of(shifted).difference_from_image(of(turned())) == "lies up to 50 mm off its image"
    assert read_geometry(header()).difference_from_image(of(turned())).startswith("does not say how the patient lies")


def test_both_forms_their_codes_and_the_units_are_taken_over():
    source = header(sform=turned() / 1000, qform=ELSEWHERE / 1000, units="meter", codes=(4, 1))
    target = nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)).header
    write_placement(source, target)
    np.testing.assert_array_equal(target.get_sform(), source.get_sform())
    np.testing.assert_array_equal(target.get_qform(), source.get_qform())
    assert target.get_zooms() == source.get_zooms()
    assert (int(target["sform_code"]), int(target["qform_code"])) == (4, 1)
    assert target.get_xyzt_units()[0] == "meter"
