from __future__ import annotations

import hashlib
import json
import math

import nibabel as nib
import numpy as np
import pytest

from dinomix_monai.data import make_phantom
from dinomix_monai.data.anatomy import ORGANS
from dinomix_monai.data.phantom import ALL_LABELS_FILE, EVERYONE, NARROW

# SHA-256 of the phantom of `test_the_phantom_is_the_same_on_every_machine`: renew it, and say so in the changelog,
# when the phantom is meant to change.
GOLDEN = "6bcb528752dd77e72bbd894ee6f06f9e0fcf0cbb06b33c3b6666dccfea62462b"

SMALL = {"cases": (1, 1, 1, 1), "size": (20, 18, 16)}
CASES = (4, 6, 2, 2)


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    """A few patients at full size."""
    return make_phantom(tmp_path_factory.mktemp("phantom"), cases=CASES).parent


@pytest.fixture(scope="module")
def patients(phantom):
    """Image and label of each of them."""
    return [(read(phantom / "images" / path.name), read(path)) for path in sorted((phantom / "labels").iterdir())]


def read(path):
    return np.asanyarray(nib.load(path).dataobj)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def organ_voxels(patients):
    return np.array([np.bincount(label.ravel(), minlength=14)[1:] for _, label in patients])


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    first, again = (contents(make_phantom(tmp_path / name, seed=3, **SMALL).parent) for name in ("a", "b"))
    assert len(first) == 10
    assert first == again


def test_another_seed_gives_other_patients(tmp_path):
    first, other = (contents(make_phantom(tmp_path / str(seed), seed=seed, **SMALL).parent) for seed in (3, 4))
    assert first.keys() == other.keys()
    assert not [path for path in first if path.suffix == ".nii" and first[path] == other[path]]


def test_every_patient_is_another(patients):
    assert len({label.tobytes() for _, label in patients}) == len({image.tobytes() for image, _ in patients}) == 14


def test_a_patient_does_not_depend_on_how_many_there_are(tmp_path):
    few = contents(make_phantom(tmp_path / "few", **SMALL).parent)
    many = contents(make_phantom(tmp_path / "many", cases=(1, 3, 1, 1), size=SMALL["size"]).parent)
    assert [path for path in few if path.suffix == ".nii" and few[path] != many[path]] == []


def test_the_phantom_is_the_same_on_every_machine(tmp_path):
    root, digest = make_phantom(tmp_path, **SMALL).parent, hashlib.sha256()
    for number in range(1, 5):
        for folder, dtype in (("images", "<i2"), ("labels", "u1")):
            array = read(root / folder / f"phantom_{number:03d}.nii")
            digest.update(np.ascontiguousarray(array, dtype=dtype).tobytes())
    assert digest.hexdigest() == GOLDEN


def test_thirteen_organs_are_in_every_patient(patients):
    assert len(ORGANS) == 13
    assert organ_voxels(patients).min() > 0
    assert max(label.max() for _, label in patients) == 13


def test_the_liver_is_about_250_times_an_adrenal_gland(patients):
    voxels = organ_voxels(patients)
    liver, adrenals = voxels[:, ORGANS.index("liver")], voxels[:, -2:]
    assert 120 < (liver / adrenals.mean(1)).mean() < 450


def test_no_organ_is_told_by_its_brightness_alone(patients):
    bins = np.arange(-150, 351, 10)
    values = [np.concatenate([image[label == organ] for image, label in patients]) for organ in range(1, 14)]
    shares = [np.histogram(hu, bins)[0] / len(hu) for hu in values]
    for organ, share in enumerate(shares):
        # Overlap of the two distributions: 0 when a threshold parts them, 1 when they are the same.
        overlaps = [np.minimum(share, other).sum() for number, other in enumerate(shares) if number != organ]
        assert max(overlaps) > 0.4, ORGANS[organ]


@pytest.mark.parametrize("organ", ["pancreas", "gallbladder", "left adrenal gland"])
def test_more_of_the_surroundings_than_of_a_small_organ_is_as_bright_as_it(patients, organ):
    for image, label in patients:
        inside = image[label == ORGANS.index(organ) + 1]
        low, high = np.percentile(inside, (5, 95))
        around = image[label == 0]
        assert ((around >= low) & (around <= high)).sum() > len(inside)


def test_labeled_patients_are_alike_and_the_others_are_not(patients):
    aorta, liver = 8, 6
    features = np.array(
        [
            [
                image[label == aorta].mean(),
                np.log((label == liver).sum()),
                *(place.mean() for place in (label == liver).nonzero()),
            ]
            for image, label in patients
        ]
    )
    labeled, others = features[: CASES[0]].std(0), features[CASES[0] :].std(0)
    assert (others > 2 * labeled).all(), (labeled, others)


def test_labeled_patients_are_of_the_narrow_range_and_all_others_of_the_wide_one(tmp_path, monkeypatch):
    drawn = []
    real = make_phantom.__globals__["Anatomy"]

    def anatomy(random_state, population, size):
        result = real(random_state, population, size)
        drawn.append((result.label.tobytes(), population))
        return result

    monkeypatch.setitem(make_phantom.__globals__, "Anatomy", anatomy)
    root = make_phantom(tmp_path, cases=(2, 3, 1, 1), size=(16, 16, 16)).parent
    populations = dict(drawn)
    found = [populations[read(path).tobytes()] for path in sorted((root / "labels").iterdir())]
    # By value, since there are two of each module when doctests are collected.
    assert [repr(population) for population in found] == [repr(NARROW)] * 2 + [repr(EVERYONE)] * 5


def test_the_narrow_range_lies_within_the_wide_one():
    assert NARROW.rotation_rad < EVERYONE.rotation_rad
    assert NARROW.shift < EVERYONE.shift
    assert NARROW.variation < EVERYONE.variation
    for name in ("scale", "phase", "noise_hu"):
        (low, high), (least, greatest) = getattr(NARROW, name), getattr(EVERYONE, name)
        assert least <= low < high <= greatest
        assert high - low < (greatest - least) / 2


def test_files_are_nifti_in_hounsfield_units_on_one_grid(phantom):
    for path in (phantom / "images").iterdir():
        image, label = nib.load(path), nib.load(phantom / "labels" / path.name)
        assert image.shape == label.shape == (80, 80, 56)
        assert (image.affine == label.affine).all()
        assert image.header.get_zooms() == (4.5, 4.5, 5.5)
        assert image.header.get_xyzt_units()[0] == "mm"
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
        assert (image.get_data_dtype(), label.get_data_dtype()) == (np.int16, np.uint8)
        assert math.isnan(image.header["scl_slope"])
        values = read(path)
        assert values.min() >= -1024
        assert np.median(values[:5, :5]) == pytest.approx(-1000, abs=5)  # air in the corner


def test_the_list_has_every_patient_in_one_section_and_no_label_of_an_unlabeled_one(phantom):
    content = json.loads((phantom / "dataset.json").read_text())
    assert [len(content[name]) for name in ("training", "unlabeled", "validation", "test")] == list(CASES)
    names = [f"phantom_{number:03d}.nii" for number in range(1, sum(CASES) + 1)]
    listed = [case for name in ("training", "unlabeled", "validation", "test") for case in content[name]]
    assert [case["image"] for case in listed] == [f"images/{name}" for name in names]
    assert all(case.keys() == {"image"} for case in content["unlabeled"])
    for section in ("training", "validation", "test"):
        assert all(case["label"] == case["image"].replace("images", "labels") for case in content[section])


def test_the_list_names_the_classes_by_value(phantom):
    content = json.loads((phantom / "dataset.json").read_text())
    assert content["labels"] == {"0": "background", **{str(i + 1): name for i, name in enumerate(ORGANS)}}
    assert content["phantom_seed"] == 0


def test_the_other_list_has_the_labels_of_the_unlabeled_patients_too(phantom):
    content = json.loads((phantom / "dataset.json").read_text())
    everything = json.loads((phantom / ALL_LABELS_FILE).read_text())
    assert everything["unlabeled"] == []
    assert everything["training"] == content["training"] + [
        {**case, "label": case["image"].replace("images", "labels")} for case in content["unlabeled"]
    ]
    assert {k: v for k, v in everything.items() if k not in ("training", "unlabeled")} == {
        k: v for k, v in content.items() if k not in ("training", "unlabeled")
    }


def test_nothing_but_images_labels_and_lists_is_left(phantom):
    assert {path.name for path in phantom.iterdir()} == {"images", "labels", "dataset.json", ALL_LABELS_FILE}
    assert len(list(phantom.rglob("*.nii"))) == 2 * sum(CASES)


@pytest.mark.parametrize("cases", [(1, 1, 1), (1, 1, 1, 1, 1)])
def test_another_number_of_sections_is_refused(tmp_path, cases):
    message = r"cases must have 4 numbers \(training, unlabeled, validation, test\), got \(1, 1, 1"
    with pytest.raises(ValueError, match=message):
        make_phantom(tmp_path, cases=cases)


def test_a_size_too_small_for_the_anatomy_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"size must be at least 16 voxels along each axis, got \(16, 15, 16\)"):
        make_phantom(tmp_path, size=(16, 15, 16))
    assert not list(tmp_path.iterdir())
