from __future__ import annotations

import gzip
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Orientation, Spacing

from dinomix_monai.data import CaseCheck

ON_ITS_GRID = "Export the label on the grid of its image."
PADDED = "It will be padded; a smaller patch_size wastes less."
UNITS = "Set intensity_window for this modality, or bring it to the same units."


@pytest.fixture
def label(save):
    """A label with the classes 0, 1 and 2, on the grid of the noise."""
    array = np.zeros((6, 5, 4))
    array[:2], array[3] = 1, 2
    return save("label.nii.gz", array, dtype=np.uint8)


def found(image, label=None, section="training", **settings):
    """Severity, file name, problem and remedy of all that is found in a case."""
    case = {"image": image} if label is None else {"image": image, "label": label}
    report = CaseCheck(3, **settings)(section, case)
    return [(f.severity, Path(f.file).name, f.problem, f.remedy) for f in report.findings]


def rotation(degrees):
    """A rotation about the second axis."""
    angle = math.radians(degrees)
    affine = np.eye(4)
    affine[[0, 0, 2, 2], [0, 2, 0, 2]] = math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle)
    return affine


def test_nothing_is_found_in_a_sound_case(save, noise, label):
    image = save("image.nii.gz", noise(), dtype=np.int16)
    settings = {"patch_size": (6, 5, 4), "spacing_mm": (2, 2, 3), "intensity_window": (-160, 240)}
    report = CaseCheck(3, **settings)("training", {"image": image, "label": label})
    assert report.findings == []
    assert report.classes == {0, 1, 2}
    assert (report.section, report.image) == ("training", image)


def test_a_fourth_axis_of_length_1_is_no_problem(save, noise, label):
    assert found(save("image.nii", noise()[..., None]), label) == []


@pytest.mark.parametrize("section", ["training", "validation", "test"])
def test_a_case_without_a_label_is_found(save, noise, section):
    remedy = "Name one, or list it under `unlabeled`."
    problem = f"has no label under `{section}`"
    assert found(save("image.nii", noise()), section=section) == [("error", "image.nii", problem, remedy)]


def test_an_unlabeled_case_needs_no_label(save, noise):
    assert found(save("image.nii", noise()), section="unlabeled") == []


@pytest.mark.parametrize("missing", ["image", "label"])
def test_a_missing_file_is_found(save, noise, label, tmp_path, missing):
    files = {"image": save("image.nii", noise()), "label": label, missing: str(tmp_path / "missing.nii")}
    remedy = "Put the file there, or take the case out of the list."
    assert found(**files) == [("error", "missing.nii", "does not exist", remedy)]


def test_a_gzip_cut_in_half_is_found_and_its_header_still_compared(save, noise, label):
    path = Path(save("image.nii.gz", noise(shape=(20, 20, 20))))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert found(str(path), label) == [
        ("error", "image.nii.gz", "is cut short or damaged", "Copy or export it anew."),
        ("error", "label.nii.gz", "has 6 x 5 x 4 voxels and its image 20 x 20 x 20", ON_ITS_GRID),
    ]


def test_a_label_of_another_shape_is_found(save, noise, label):
    problem = "has 6 x 5 x 4 voxels and its image 5 x 6 x 4"
    image = save("image.nii", noise(shape=(5, 6, 4)))
    assert found(image, label) == [("error", "label.nii.gz", problem, ON_ITS_GRID)]


@pytest.mark.parametrize(
    ("affine", "shift_mm"),
    [
        (np.diag([-2, -2, 4, 1]), "3"),  # three steps of 1 mm too many
        (np.diag([2, -2, 3, 1]), "20"),  # mirrored: five steps of 2 mm to the wrong side
        ([[-2, 0, 0, 0.3], [0, -2, 0, 0.4], [0, 0, 3, 0], [0, 0, 0, 1]], "0.5"),
    ],
    ids=["thicker slices", "mirrored", "shifted"],
)
def test_a_label_that_lies_elsewhere_is_found(save, noise, label, affine, shift_mm):
    problem = f"lies up to {shift_mm} mm off its image"
    image = save("image.nii", noise(), affine=affine)
    assert found(image, label) == [("error", "label.nii.gz", problem, ON_ITS_GRID)]


def test_an_affine_may_differ_as_rounding_makes_it(save, noise, label):
    affine = np.diag([-2.001, -2.001, 3.001, 1])
    affine[:3, 3] = 0.01
    assert found(save("image.nii", noise(), affine=affine), label) == []


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_found(save, noise, value):
    array = noise().astype(float)
    array[1, 2, :3] = value
    problem = "has 3 voxels that are NaN or infinite"
    remedy = "Export it anew, or replace them."
    window = {"intensity_window": (-160, 240)}
    for settings in ({}, window):
        assert found(save("image.nii", array), section="unlabeled", **settings) == [
            ("error", "image.nii", problem, remedy)
        ]


def test_an_image_without_any_finite_value_is_found_once(save):
    problem = "has 8 voxels that are NaN or infinite"
    image = save("image.nii", np.full((2, 2, 2), math.nan))
    assert [finding[2] for finding in found(image, section="unlabeled", intensity_window=(0, 1))] == [problem]


@pytest.mark.parametrize("value", [0, -1024])
def test_a_constant_image_is_found(save, value):
    image = save("image.nii", np.full((6, 5, 4), value))
    remedy = "Export it anew, or take the case out."
    for settings in ({}, {"intensity_window": (-160, 240)}):
        expected = [("error", "image.nii", f"is {value} everywhere", remedy)]
        assert found(image, section="unlabeled", **settings) == expected


@pytest.mark.parametrize(
    ("stray", "problem"),
    [
        ([3, 3], "has 2 voxels of no class, from 3 to 3"),
        ([-1, 255], "has 2 voxels of no class, from -1 to 255"),
        ([0.5], "has 1 voxels of no class, from 0.5 to 0.5"),
        ([math.nan], "has 1 voxels of no class, from nan to nan"),
    ],
)
def test_labels_outside_of_the_list_are_found(save, noise, stray, problem):
    array = np.ones((6, 5, 4))
    array[0, 0, : len(stray)] = stray
    remedy = "Only the whole numbers 0 to 2 have a name in the datalist."
    assert found(save("image.nii", noise()), save("l.nii", array)) == [("error", "l.nii", problem, remedy)]


def test_a_label_of_background_alone_is_found(save, noise):
    expected = ("has nothing but background", "Make sure that this patient has none of the classes.")
    assert found(save("image.nii", noise()), save("l.nii", np.zeros((6, 5, 4)))) == [("warning", "l.nii", *expected)]


def test_a_singular_affine_is_found(save, noise):
    affine = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    expected = ("has a singular affine", "Write a valid sform or qform into its header.")
    image = save("image.nii", noise(), affine=affine)
    assert found(image, section="unlabeled", patch_size=(9, 9, 9)) == [("error", "image.nii", *expected)]


def test_an_affine_that_is_no_number_is_found(save, noise):
    path = Path(save("image.nii", noise()))
    content = bytearray(path.read_bytes())
    content[280:284] = np.array(math.nan, "<f4").tobytes()  # srow_x
    path.write_bytes(content)
    assert [finding[2] for finding in found(str(path), section="unlabeled")] == ["has a singular affine"]


@pytest.mark.parametrize(
    ("spacing", "problem"),
    [
        ((0.002, 0.002, 0.003), "has voxels of 0.002 x 0.002 x 0.003 mm"),
        ((2, 2, 50.5), "has voxels of 2 x 2 x 50.5 mm"),
        ((2, 0.04, 2), "has voxels of 2 x 0.04 x 2 mm"),
    ],
)
def test_an_absurd_spacing_is_found(save, noise, spacing, problem):
    image = save("image.nii", noise(), affine=np.diag([*spacing, 1]))
    expected = [("error", "image.nii", problem, "Write their size in mm into its header.")]
    assert found(image, section="unlabeled", patch_size=(9, 9, 9), spacing_mm=(2, 2, 2)) == expected


@pytest.mark.parametrize("spacing", [(0.05, 0.05, 0.05), (50, 50, 50)])
def test_a_spacing_at_the_limit_is_no_problem(save, noise, spacing):
    assert found(save("image.nii", noise(), affine=np.diag([*spacing, 1.0])), section="unlabeled") == []


@pytest.mark.parametrize("degrees", [15, 30, 45])
def test_an_oblique_volume_is_found(save, noise, degrees):
    image = save("image.nii", noise(), affine=rotation(degrees) @ np.diag([-2, -2, 3, 1]))
    problem = f"is oblique, {degrees} degrees off the axes of the body"
    remedy = "Make sure that all cases are, or resample it to straight axes."
    assert found(image, section="unlabeled") == [("warning", "image.nii", problem, remedy)]


@pytest.mark.parametrize("degrees", [0, 5, 85, 90])
def test_a_volume_that_is_hardly_turned_or_whose_axes_are_in_another_order_is_no_problem(save, noise, degrees):
    affine = rotation(degrees) @ np.diag([-2, -2, 3, 1])
    assert found(save("image.nii", noise(), affine=affine), section="unlabeled") == []


@pytest.mark.parametrize("spacing_mm", [(2, 2, 2), (1.3, 2.4, 3.7), (0.8, 5, 4.1), (-1, -1, -1)])
@pytest.mark.parametrize("degrees", [0, 7, 90])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_a_volume_smaller_than_the_patch_is_found_on_the_grid_that_monai_resamples_it_to(
    save, noise, spacing_mm, degrees, order
):
    axes = np.diag([-2, 1.5, 3])[:, order]
    affine = rotation(degrees)
    affine[:3, :3] = affine[:3, :3] @ axes
    array = noise(shape=(31, 17, 23))
    image = save("image.nii", array, affine=affine)
    turned = Orientation("RAS", labels=None)(MetaTensor(torch.as_tensor(array[None]).float(), affine=affine))
    shape = tuple(Spacing(spacing_mm)(turned).shape[1:])

    def found_for(patch_size):
        return found(image, section="unlabeled", patch_size=patch_size, spacing_mm=spacing_mm)

    assert found_for(shape) == []
    for axis in range(3):
        patch = tuple(length + (axis == i) for i, length in enumerate(shape))
        sizes = [" x ".join(map(str, lengths)) for lengths in (shape, patch)]
        problem = f"is {sizes[0]} voxels when resampled, less than a patch of {sizes[1]}"
        assert found_for(patch) == [("warning", "image.nii", problem, PADDED)]


def test_without_spacing_mm_the_patch_is_held_to_the_grid_of_the_file(save, noise):
    image = save("image.nii", noise(shape=(6, 5, 4)))
    assert found(image, section="unlabeled", patch_size=(6, 5, 4)) == []
    assert len(found(image, section="unlabeled", patch_size=(6, 5, 5))) == 1


def test_intensities_outside_of_the_window_are_found(save):
    array = np.arange(1000, 2000).reshape(10, 10, 10)
    window = {"section": "unlabeled", "intensity_window": (-160, 240)}
    array[0, 0, :9] = range(9)
    problem = "has 99.1% of its voxels outside of -160 to 240"
    assert found(save("image.nii", array), **window) == [("warning", "image.nii", problem, UNITS)]
    array[0, 1, 0] = 9
    assert found(save("image.nii", array), **window) == []


def test_intensities_that_were_scaled_before_are_found(save, noise):
    image = save("image.nii", (noise() + 100) / 200)
    low, high = ((noise() + 100) / 200).min(), ((noise() + 100) / 200).max()
    problem = f"goes from {low:g} to {high:g}, hardly a part of -160 to 240"
    expected = [("warning", "image.nii", problem, UNITS)]
    assert found(image, section="unlabeled", intensity_window=(-160, 240)) == expected
    assert found(image, section="unlabeled") == []
    assert found(image, section="unlabeled", intensity_window=(0, 15)) == []


def test_several_problems_of_a_case_are_found_at_once(save, noise):
    array = noise().astype(float) / 1000
    array[0, 0, 0] = math.nan
    image = save("image.nii", array, affine=rotation(20) @ np.diag([2, 2, 3, 1]))
    label = save("l.nii", np.full((6, 5, 3), 9))
    assert [finding[:2] for finding in found(image, label, patch_size=(9, 9, 9), intensity_window=(-160, 240))] == [
        ("warning", "image.nii"),  # oblique
        ("warning", "image.nii"),  # small
        ("error", "image.nii"),  # NaN
        ("warning", "image.nii"),  # already scaled
        ("error", "l.nii"),  # shape
        ("error", "l.nii"),  # classes
    ]


def test_no_byte_of_a_header_makes_the_check_fail_and_no_cut_is_overlooked(save, noise, tmp_path, monkeypatch):
    monkeypatch.setattr(nib.imageglobals.logger, "disabled", True)
    content = Path(save("whole.nii", noise(), dtype=np.int16)).read_bytes()
    packed = gzip.compress(content)
    changed = [content[:i] + bytes([value]) + content[i + 1 :] for i in range(352) for value in (0, 255)]
    cuts = [("a.nii", content[:length]) for length in range(0, len(content), 50)]
    cuts += [("a.nii.gz", packed[:length]) for length in range(0, len(packed), 20)]

    def report(name, content):
        (tmp_path / name).write_bytes(content)
        case = {"image": str(tmp_path / name), "label": str(tmp_path / name)}
        return CaseCheck(3, (4, 4, 4), (2, 2, 3), (-160, 240))("training", case)

    assert all(report("a.nii", version).section == "training" for version in changed)
    assert all(report(*cut).digest is None for cut in cuts)


@pytest.mark.parametrize("value", [(1, 2), 64, (64, 64, 0), (-1, 64, 64)])
def test_a_patch_must_have_three_numbers_above_0(value):
    with pytest.raises(ValueError, match="patch_size must have three numbers above 0, got "):
        CaseCheck(3, patch_size=value)


@pytest.mark.parametrize("value", [(1, 2), 4.5, (1, 2, 3, 4)])
def test_a_spacing_must_have_three_numbers(value):
    with pytest.raises(ValueError, match="spacing_mm must have three numbers, got "):
        CaseCheck(3, spacing_mm=value)


@pytest.mark.parametrize("value", [(240, -160), (0, 0), 240, (0, 1, 2)])
def test_a_window_must_be_two_numbers_in_ascending_order(value):
    with pytest.raises(ValueError, match="intensity_window must be two intensities, the first one below the second"):
        CaseCheck(3, intensity_window=value)


def test_a_volume_that_no_memory_would_hold_when_resampled_is_found(save, noise):
    image = save("image.nii", noise(), affine=np.diag([50.0, 50.0, 50.0, 1.0]))
    problem = "is 2501 x 2001 x 1501 voxels when resampled"
    remedy = "Correct the voxel size in its header, or set a coarser spacing_mm."
    assert ("error", "image.nii", problem, remedy) in found(image, section="unlabeled", spacing_mm=(0.1, 0.1, 0.1))
    assert found(image, section="unlabeled", spacing_mm=(1, 1, 1)) == []


def with_header(path, **fields):
    """Changes fields of a header and nothing else."""
    volume = nib.load(path)
    for name, value in fields.items():
        volume.header[name] = value
    nib.save(nib.Nifti1Image(np.array(volume.dataobj), None, volume.header), path)
    return path


def test_a_label_in_another_orientation_is_on_the_grid_of_its_image(save, noise, label):
    volume = nib.load(label)
    change = np.array([[2, -1], [0, 1], [1, -1]])
    array = nib.orientations.apply_orientation(np.array(volume.dataobj), change)
    nib.save(nib.Nifti1Image(array, volume.affine @ nib.orientations.inv_ornt_aff(change, volume.shape)), label)
    assert nib.load(label).shape != (6, 5, 4)
    assert found(save("image.nii.gz", noise()), label) == []


def test_an_orientation_that_nobody_knows_is_found(save, noise, label):
    files = [with_header(path, sform_code=0, qform_code=0) for path in (save("image.nii.gz", noise()), label)]
    problem = "does not say how the patient lies (sform and qform have code 0): its axes are taken to run to left"
    findings = found(*files)
    assert [finding[:2] for finding in findings] == [("warning", "image.nii.gz"), ("warning", "label.nii.gz")]
    assert all(finding[2].startswith(problem) for finding in findings)


def test_a_label_that_does_not_say_where_it_lies_is_not_on_the_grid_of_an_image_that_does(save, noise, label):
    with_header(label, sform_code=0, qform_code=0)
    problem = "does not say how the patient lies (sform and qform have code 0)"
    assert found(save("image.nii.gz", noise()), label) == [("error", "label.nii.gz", problem, ON_ITS_GRID)]


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_header_that_contradicts_itself_is_found(save, noise, label, which):
    files = {"image": save("image.nii.gz", noise()), "label": label}
    with_header(files[which], pixdim=[1, 1, 1, 1, 1, 1, 1, 1])
    problem = "has voxels of 2 x 2 x 3 mm by its sform and of 1 x 1 x 1 mm by its pixdim"
    assert found(**files) == [("error", f"{which}.nii.gz", problem, "Write the true size into both.")]


@pytest.mark.parametrize("which", ["image", "label"])
def test_a_pixdim_that_differs_a_little_is_found(save, noise, label, which):
    files = {"image": save("image.nii.gz", noise()), "label": label}
    with_header(files[which], pixdim=[1, 2.01, 2, 3, 1, 1, 1, 1])
    problem = "has voxels of 2 x 2 x 3 mm by its sform and of 2.01 x 2 x 3 mm by its pixdim; the former count"
    assert found(**files) == [("warning", f"{which}.nii.gz", problem, "Write the true size into both.")]


def test_a_label_map_among_the_images_is_found(save, noise):
    image = with_header(save("image.nii.gz", noise()), intent_code=1002)
    problem = ("error", "image.nii.gz", "is a label map, as its header says", "List the scan itself.")
    assert found(image, section="unlabeled") == [problem]


def test_each_channel_is_checked(save, noise, label):
    first, second = (save(f"{name}.nii", noise()) for name in ("t1", "t2"))
    flat, strange = save("flat.nii", np.ones((6, 5, 4))), save("pet.nii", 9000 + noise())
    other = save("other.nii", np.random.default_rng(5).normal(0, 100, (6, 5, 5)))
    assert found([first, strange], label) == []
    grid = ("error", "other.nii", "has 6 x 5 x 5 voxels and the first channel 6 x 5 x 4")
    assert found([first, other], label) == [(*grid, "Resample all channels of an image to one grid.")]
    assert found([first, flat], label) == [
        ("error", "flat.nii", "is 1 everywhere", "Export it anew, or take the case out.")
    ]
    twice = found([first, second], label)
    assert [(severity, file) for severity, file, *_ in twice] == [("error", "t2.nii")]
    assert "has the voxels of" in twice[0][2]


def test_a_window_is_that_of_its_channel(save, noise, label):
    first, strange = save("ct.nii", noise()), save("pet.nii", 9000 + noise())
    windows = {"both": (-160, 240), "of the first": ((-160, 240), None), "wrong": (None, (-160, 240))}
    names = {
        key: [file for _, file, *_ in found([first, strange], label, intensity_window=window)]
        for key, window in windows.items()
    }
    assert names == {"both": ["pet.nii"], "of the first": [], "wrong": ["pet.nii"]}


def test_images_are_told_apart_by_all_of_their_channels(save, noise):
    first, second, third = (save(f"{i}.nii", noise() * (i + 1)) for i in range(3))
    digest = [CaseCheck(3)("unlabeled", {"image": image}).digest for image in (first, [first, second], [first, third])]
    assert len(set(digest)) == 3
