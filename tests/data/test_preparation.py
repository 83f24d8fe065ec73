from __future__ import annotations

import json
import time
from dataclasses import replace

import fire
import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from dinomix_monai import __main__ as commands
from dinomix_monai.data import open_datalist, prepare_dataset, read_protocol

IDS = ["01", "02", "03", "04", "05"]
SPLIT = {
    "name": "tiny",
    "source": "here",
    "default_labeled": 20,
    "labeled": {"20": ["02"], "50": ["02", "03"]},
    "train": ["01", "02", "03"],
    "validation": ["04"],
    "test": ["05"],
}
WHOLE_VOLUMES = {
    "title": "Look-alike",
    "description": "Resized.",
    "class_names": ["background", "liver", "spleen", "kidney"],
    "grid": [16, 12, 8],
    "window": [-75, 275],
    "files": [{"image": "img/img{id}.nii.gz", "label": "label/label{id}.nii.gz"}],
    "protocols": [SPLIT],
}
H5 = {
    "title": "Look-alike",
    "description": "As it was.",
    "class_names": ["background", "ventricle"],
    "axes": "zyx",
    "spacing_mm": [1.5, 1.5, 10.0],
    "files": [{"image": "data/{id}.h5"}],
    "protocols": [SPLIT],
}


@pytest.fixture
def protocol(tmp_path):
    return read_protocol(write(tmp_path / "lookalike.json", WHOLE_VOLUMES))


@pytest.fixture
def raw(tmp_path):
    """Scans of different shape and direction, as a publisher would give them."""
    folder = tmp_path / "raw"
    random = np.random.default_rng(0)
    for number, case in enumerate(IDS):
        shape = (21 + number, 20, 9 - number)
        affine = np.diag([-0.8 - number / 10, (-1) ** number * 0.8, 3.0, 1.0])
        affine[:3, 3] = (100, -50, 5 * number)
        save(folder / f"img/img{case}.nii.gz", random.normal(60, 150, shape).round().astype(np.int16), affine)
        save(folder / f"label/label{case}.nii.gz", random.integers(0, 4, shape).astype(np.uint8), affine)
    return folder


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def save(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), path)


def voxels(path):
    return np.asanyarray(nib.load(path).dataobj)


def expected_image(raw, size, low, high):
    """The published preprocessing once more: trilinear between voxel centers, clipped, scaled by what is left."""
    centers = [(np.arange(new) + 0.5) * old / new - 0.5 for old, new in zip(raw.shape, size)]
    grid = np.meshgrid(*centers, indexing="ij")
    image = np.clip(map_coordinates(raw.astype(float), grid, order=1, mode="nearest"), low, high)
    return (image - image.min()) / (image.max() - image.min())


def expected_label(raw, size):
    return raw[np.ix_(*(np.arange(new) * old // new for old, new in zip(raw.shape, size)))]


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_volumes_are_those_of_the_published_preprocessing(protocol, raw, tmp_path):
    out = prepare_dataset(protocol, raw, tmp_path / "out").parent
    for case in IDS:
        expected = expected_image(voxels(raw / f"img/img{case}.nii.gz"), (16, 12, 8), -75, 275)
        image = nib.load(out / f"images/{case}.nii.gz")
        np.testing.assert_allclose(image.dataobj, expected, atol=2e-6)
        assert image.get_data_dtype() == np.float32
        assert image.header.get_xyzt_units()[0] == "mm"
    for case in ("02", "04", "05"):
        label = nib.load(out / f"labels/{case}.nii.gz")
        assert (
            np.asanyarray(label.dataobj) == expected_label(voxels(raw / f"label/label{case}.nii.gz"), (16, 12, 8))
        ).all()
        assert label.get_data_dtype() == np.uint8
        assert (label.affine == nib.load(out / f"images/{case}.nii.gz").affine).all()


def test_prepared_volumes_cover_what_the_originals_did(protocol, raw, tmp_path):
    out = prepare_dataset(protocol, raw, tmp_path / "out").parent
    originals = json.loads((out / "originals.json").read_text())
    assert list(originals) == ["02", "01", "03", "04", "05"]
    for case in IDS:
        before, after = nib.load(raw / f"img/img{case}.nii.gz"), nib.load(out / f"images/{case}.nii.gz")
        assert originals[case] == {"shape": list(before.shape), "affine": before.affine.tolist()}
        for corner in ((0, 0, 0), (1, 0, 1), (1, 1, 1)):
            places = [
                nib.affines.apply_affine(scan.affine, np.multiply(corner, scan.shape) - 0.5) for scan in (before, after)
            ]
            np.testing.assert_allclose(*places, atol=1e-4)
        assert nib.aff2axcodes(before.affine) == nib.aff2axcodes(after.affine)


def test_the_data_set_opens_as_any_other_and_says_what_it_is(protocol, raw, tmp_path):
    path = prepare_dataset(protocol, raw, tmp_path / "out", labeled=50)
    assert path == tmp_path / "out" / "dataset.json"
    opened = open_datalist(path.parent)
    sections = (opened.training, opened.unlabeled, opened.validation, opened.test)
    assert [[case["image"][-9:-7] for case in section] for section in sections] == [
        ["02", "03"],
        ["01"],
        ["04"],
        ["05"],
    ]
    assert opened.class_names == ("background", "liver", "spleen", "kidney")
    assert sum(opened.training_voxels) == 2 * 16 * 12 * 8
    content = json.loads(path.read_text())
    named = {"dataset": "lookalike", "name": "tiny", "labeled_percent": 50, "source": "here"}
    assert named.items() <= content["protocol"].items()
    assert content["unlabeled"] == [{"image": "images/01.nii.gz"}]


def test_labels_of_unlabeled_cases_are_neither_read_nor_written(protocol, raw, tmp_path):
    for case in ("01", "03"):
        (raw / f"label/label{case}.nii.gz").write_text("secret")
    out = prepare_dataset(protocol, raw, tmp_path / "out").parent
    images = [f"images/{case}.nii.gz" for case in IDS]
    assert names(out) == [
        "dataset.json",
        *images,
        *(f"labels/{case}.nii.gz" for case in ("02", "04", "05")),
        "originals.json",
    ]


def test_the_number_of_processes_changes_nothing(protocol, raw, tmp_path):
    one, three = (prepare_dataset(protocol, raw, tmp_path / str(n), workers=n).parent for n in (1, 3))
    assert names(one) == names(three)
    assert [name for name in names(one) if (one / name).read_bytes() != (three / name).read_bytes()] == []


def test_a_finished_data_set_is_left_as_it_is(protocol, raw, tmp_path):
    out = prepare_dataset(protocol, raw, tmp_path / "out").parent
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert prepare_dataset(protocol, tmp_path / "gone", out) == out / "dataset.json"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_another_share_does_not_go_into_the_same_folder(protocol, raw, tmp_path):
    out = prepare_dataset(protocol, raw, tmp_path / "out").parent
    with pytest.raises(
        FileExistsError, match=r"out_dir must be new, empty or hold the same data set, got .*/out\. Choose"
    ):
        prepare_dataset(protocol, raw, out, labeled=50)


@pytest.mark.parametrize("name", ["", "notes.txt"], ids=["file", "folder"])
def test_what_is_there_is_not_overwritten(protocol, raw, tmp_path, name):
    out = tmp_path / "out"
    if name:
        out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(FileExistsError, match="out_dir must be new, empty or hold the same data set"):
        prepare_dataset(protocol, raw, out)
    assert (out / name).read_text() == "mine"


def test_an_empty_folder_is_filled(protocol, raw, tmp_path):
    (tmp_path / "out").mkdir()
    assert prepare_dataset(protocol, raw, tmp_path / "out").is_file()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_missing_cases_are_named_before_anything_is_written(protocol, raw, tmp_path):
    (raw / "img/img01.nii.gz").unlink()
    (raw / "img/img05.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"without the image of 01, 05\. Looked for"):
        prepare_dataset(protocol, raw, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_all_problems_are_named_before_anything_is_written(protocol, raw, tmp_path):
    affines = {case: nib.load(raw / f"img/img{case}.nii.gz").affine for case in ("02", "04", "05")}
    save(raw / "label/label02.nii.gz", np.full((22, 20, 8), 4, dtype=np.uint8), affines["02"])
    save(raw / "label/label05.nii.gz", np.zeros((25, 20, 4), dtype=np.uint8), affines["05"])
    with pytest.raises(ValueError, match="raw_dir must hold cases that can be prepared, got") as error:
        prepare_dataset(protocol, raw, tmp_path / "new" / "out")
    assert str(error.value).splitlines()[1:] == [
        "  02: label must have whole values from 0 to 3, got 4 to 4.",
        "  05: label must lie on the grid of its image, got one that has 25 x 20 x 4 voxels and its image 25 x 20 x 5.",
    ]
    assert not (tmp_path / "new").exists()


def cut_in_half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def test_a_scan_that_fails_halfway_is_named_and_leaves_nothing(protocol, raw, tmp_path):
    before = sorted(tmp_path.iterdir())
    cut_in_half(raw / "img/img04.nii.gz")
    with pytest.raises(ValueError, match=r"^04: .*img04\.nii\.gz must hold a readable image, got EOFError"):
        prepare_dataset(protocol, raw, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == before


def test_after_an_error_no_worker_writes_any_more(protocol, raw, tmp_path, monkeypatch):
    def save_late(image, path):
        time.sleep(0.5)
        if not path.parent.is_dir():
            (tmp_path / "too late").touch()

    monkeypatch.setattr(nib, "save", save_late)  # worker processes are forked
    cut_in_half(raw / "img/img04.nii.gz")
    with pytest.raises(ValueError, match=r"^04: "):
        prepare_dataset(protocol, raw, tmp_path / "out")
    assert not (tmp_path / "too late").exists()


def test_a_scan_without_contrast_is_named(protocol, raw, tmp_path):
    save(raw / "img/img03.nii.gz", np.full((23, 20, 7), 900, dtype=np.int16))
    with pytest.raises(ValueError, match=r"^03: image must have finite and different values within \[-75, 275\]"):
        prepare_dataset(protocol, raw, tmp_path / "out")


def test_h5_volumes_keep_their_voxels(tmp_path):
    h5py = pytest.importorskip("h5py")
    random = np.random.default_rng(0)
    (tmp_path / "raw" / "data").mkdir(parents=True)
    stored = {case: random.random((3, 6, 5), dtype=np.float32) for case in IDS}
    for case, image in stored.items():
        with h5py.File(tmp_path / f"raw/data/{case}.h5", "w") as file:
            file["image"], file["label"] = image, (image > 0.5).astype(np.uint8)
    out = prepare_dataset(read_protocol(write(tmp_path / "h5.json", H5)), tmp_path / "raw", tmp_path / "out").parent
    for case in IDS:
        image = nib.load(out / f"images/{case}.nii.gz")
        assert (np.asanyarray(image.dataobj) == stored[case].transpose(2, 1, 0)).all()
        assert (image.affine == np.diag([1.5, 1.5, 10.0, 1.0])).all()
    assert (voxels(out / "labels/05.nii.gz") == (stored["05"].transpose(2, 1, 0) > 0.5)).all()
    assert [path.name for path in sorted((out / "labels").iterdir())] == ["02.nii.gz", "04.nii.gz", "05.nii.gz"]


def test_there_must_be_a_process(protocol, raw, tmp_path):
    with pytest.raises(ValueError, match=r"workers must be >= 1, got 0\."):
        prepare_dataset(protocol, raw, tmp_path / "out", workers=0)


def test_the_command_prints_the_sections_and_the_list(raw, tmp_path, capsys):
    path = write(tmp_path / "lookalike.json", WHOLE_VOLUMES)
    arguments = ["prepare", path, raw, tmp_path / "out", "--labeled", 50, "--protocol", "tiny", "--workers", 1]
    fire.Fire({"prepare": commands.prepare}, command=list(map(str, arguments)))
    assert capsys.readouterr().out.splitlines() == [
        "Look-alike, protocol tiny, 50 % labeled: 2 training, 1 unlabeled, 1 validation, 1 test.",
        str(tmp_path / "out" / "dataset.json"),
    ]
    assert (tmp_path / "out" / "dataset.json").is_file()


def test_a_folder_that_was_prepared_otherwise_is_not_taken_for_the_same(protocol, raw, tmp_path):
    prepare_dataset(protocol, raw, tmp_path / "out", labeled=50)
    prepare_dataset(protocol, raw, tmp_path / "out", labeled=50)
    other = replace(protocol, window=[-100, 100])
    with pytest.raises(FileExistsError, match="out_dir must be new, empty or hold the same data set"):
        prepare_dataset(other, raw, tmp_path / "out", labeled=50)


def test_a_label_in_another_orientation_is_prepared_as_it_lies(protocol, raw, tmp_path):
    expected = prepare_dataset(protocol, raw, tmp_path / "straight").parent
    path = raw / "label/label02.nii.gz"
    label = nib.load(path)
    change = [[1, -1], [2, 1], [0, -1]]
    turned = nib.orientations.apply_orientation(np.array(label.dataobj), change)
    nib.save(nib.Nifti1Image(turned, label.affine @ nib.orientations.inv_ornt_aff(np.array(change), label.shape)), path)
    found = prepare_dataset(protocol, raw, tmp_path / "turned").parent
    for folder in ("images", "labels"):
        one, other = (nib.load(each / folder / "02.nii.gz") for each in (expected, found))
        np.testing.assert_array_equal(one.dataobj, other.dataobj)
        np.testing.assert_array_equal(one.affine, other.affine)


def test_a_label_that_lies_elsewhere_is_not_prepared(protocol, raw, tmp_path):
    path = raw / "label/label02.nii.gz"
    label = nib.load(path)
    moved = label.affine.copy()
    moved[0, 3] += 50
    nib.save(nib.Nifti1Image(np.array(label.dataobj), moved), path)
    message = r"02: label must lie on the grid of its image, got one that lies up to 50 mm off its image"
    with pytest.raises(ValueError, match=message):
        prepare_dataset(protocol, raw, tmp_path / "out")


def test_a_scan_that_does_not_say_how_the_patient_lies_stays_so_and_is_named(protocol, raw, tmp_path, caplog):
    for path in (raw / "img/img02.nii.gz", raw / "label/label02.nii.gz"):
        volume = nib.load(path)
        volume.header["sform_code"] = volume.header["qform_code"] = 0
        nib.save(nib.Nifti1Image(np.array(volume.dataobj), None, volume.header), path)
    out = prepare_dataset(protocol, raw, tmp_path / "out").parent
    assert "img02.nii.gz does not say how the patient lies" in caplog.text
    image = nib.load(out / "images/02.nii.gz")
    assert [int(image.header[f"{form}_code"]) for form in ("sform", "qform")] == [0, 0]
    # Its outer faces are where they were: a header without a code has its center at 0.
    before = nib.load(raw / "img/img02.nii.gz")
    for scan in (before, image):
        corners = nib.affines.apply_affine(scan.affine, [[-0.5] * 3, np.array(scan.shape) - 0.5])
        np.testing.assert_allclose(corners[0], -corners[1], atol=1e-4)
    np.testing.assert_allclose(
        np.multiply(image.header.get_zooms(), image.shape), np.multiply(before.header.get_zooms(), before.shape)
    )
