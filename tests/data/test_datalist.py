from __future__ import annotations

import gzip
import json
import re
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dinomix_monai.data import class_weights, make_phantom, open_datalist, read_datalist

LABELS = {"0": "background", "1": "liver", "2": "spleen"}
CASE = {"image": "images/a.nii", "label": "labels/a.nii"}


@pytest.fixture
def folder(tmp_path):
    """Two images, of which one has a label; no list yet."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    save(tmp_path / "images/a.nii", np.zeros((2, 2, 2)))
    save(tmp_path / "images/b.nii", np.zeros((2, 2, 2)))
    save(tmp_path / "labels/a.nii", [[[0, 0], [1, 0]], [[2, 2], [0, 0]]])
    return tmp_path


@pytest.fixture
def small_phantom(monkeypatch):
    """The phantom, made in a moment."""
    # Not through the module, of which there are two when its doctests are collected by its file name.
    small = partial(make_phantom, cases=(1, 1, 1, 1), size=(16, 16, 16))
    monkeypatch.setitem(open_datalist.__globals__, "make_phantom", small)


def save(path, array, dtype=np.float32):
    nib.save(nib.Nifti1Image(np.asarray(array, dtype=dtype), np.eye(4)), path)


def write(folder, content=None, **sections):
    text = content if isinstance(content, str) else json.dumps({"labels": LABELS, "training": [CASE], **sections})
    (folder / "dataset.json").write_text(text)
    return folder


def test_every_section_is_read_with_absolute_paths(folder, monkeypatch):
    cases = {"unlabeled": [{"image": "images/b.nii"}], "validation": [CASE], "test": [CASE, CASE]}
    write(folder, **cases)
    monkeypatch.chdir(folder.parent)
    image, label = str(folder / "images/a.nii"), str(folder / "labels/a.nii")
    for dataset_dir in (folder, str(folder), Path(folder.name), Path(folder.name, "images", "..")):
        opened = open_datalist(dataset_dir)
        assert opened.training == opened.validation == [{"image": image, "label": label}]
        assert opened.test == 2 * [{"image": image, "label": label}]
        assert opened.unlabeled == [{"image": str(folder / "images/b.nii")}]
        assert opened.class_names == ("background", "liver", "spleen")
        assert opened.num_classes == 3
        assert not opened.is_phantom


def test_sections_that_are_not_there_are_empty(folder):
    opened = open_datalist(write(folder))
    assert opened.unlabeled == opened.validation == opened.test == []


def test_a_path_in_the_list_may_be_absolute(folder):
    image = str(folder / "images/b.nii")
    assert open_datalist(write(folder, unlabeled=[image])).unlabeled == [{"image": image}]


def test_a_list_may_have_another_name(folder):
    write(folder).joinpath("dataset.json").rename(folder / "other.json")
    assert open_datalist(folder, file="other.json").num_classes == 3


@pytest.mark.parametrize(
    "labels",
    [
        LABELS,
        {"2": "spleen", "0": "background", "1": "liver"},
        {"background": 0, "liver": 1, "spleen": 2},
        {"spleen": 2, "background": 0, "liver": 1},
        ["background", "liver", "spleen"],
    ],
    ids=["decathlon", "decathlon in disorder", "nnU-Net", "nnU-Net in disorder", "names"],
)
def test_class_names_are_in_the_order_of_their_values(folder, labels):
    assert open_datalist(write(folder, labels=labels)).class_names == ("background", "liver", "spleen")


def test_unlabeled_cases_may_be_plain_strings(folder):
    opened = open_datalist(write(folder, unlabeled=["images/b.nii", "./images/a.nii"]))
    assert opened.unlabeled == [{"image": str(folder / "images/b.nii")}, {"image": str(folder / "images/a.nii")}]


@pytest.mark.parametrize("label", ["labels/a.nii", "labels/of another site.nii"], ids=["existing", "missing"])
def test_the_label_of_an_unlabeled_case_is_dropped_unseen(folder, label):
    opened = open_datalist(write(folder, unlabeled=[{"image": "images/b.nii", "label": label}]))
    assert opened.unlabeled == [{"image": str(folder / "images/b.nii")}]
    (folder / "images/b.nii").unlink()  # only the voxels of the training label are read
    assert opened.training_voxels == [5, 1, 2]


def test_entries_beyond_image_and_label_are_dropped(folder):
    opened = open_datalist(write(folder, training=[{**CASE, "patient": "Jane Doe"}]))
    assert opened.training[0].keys() == {"image", "label"}


def test_training_voxels_are_those_counted_by_hand(folder):
    save(folder / "labels/b.nii", np.full((1, 1, 3), 2), dtype=np.uint8)
    save(folder / "labels/c.nii", np.ones((9, 9, 9)))
    cases = {"training": [CASE, {"image": "images/b.nii", "label": "labels/b.nii"}]}
    cases["validation"] = [{"image": "images/b.nii", "label": "labels/c.nii"}]  # does not count
    assert open_datalist(write(folder, **cases)).training_voxels == [5, 1, 5]


def test_a_class_without_voxels_has_count_0(folder):
    opened = open_datalist(write(folder, labels={**LABELS, "3": "pancreas"}))
    assert opened.training_voxels == [5, 1, 2, 0]


@pytest.mark.parametrize(
    ("values", "got"), [([0, 3], "3 to 3"), ([-1, 1], "-1 to -1"), ([0, 0.99999], "0.99999 to 0.99999")]
)
def test_label_values_without_a_name_are_refused(folder, values, got):
    save(folder / "labels/a.nii", [[values]])
    message = rf"must be whole numbers below 3 \(`labels` of dataset.json\), got {got} in .*labels/a\.nii"
    with pytest.raises(ValueError, match=message):
        _ = open_datalist(write(folder)).training_voxels


def test_a_folder_without_a_list_is_refused(tmp_path):
    message = rf"dataset_dir must hold a datalist dataset\.json, got {re.escape(str(tmp_path))}\. It lists `labels`"
    with pytest.raises(FileNotFoundError, match=message):
        open_datalist(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{\n "labels": }', r"dataset\.json must be JSON, got an error at line 2: Expecting value"),
        ("[]", r"dataset\.json must hold an object with labels and training, got a list"),
        (
            '{"labels": ["a", "b"], "training": {"image": "a.nii"}}',
            r"`training` of .* must be a list of cases, got a dict",
        ),
        ('{"labels": ["a", "b"], "training": [3]}', "`training` must have image and label, got 3 without image"),
        ('{"labels": ["a", "b"], "training": [{"image": 3}]}', r"image and label, got \{'image': 3\} without image"),
    ],
)
def test_what_is_no_list_is_refused(folder, content, message):
    with pytest.raises(ValueError, match=message):
        open_datalist(write(folder, content))


def test_a_list_that_is_no_text_is_refused(folder):
    (folder / "dataset.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(ValueError, match=r"dataset\.json must be JSON in UTF-8, got an error at byte 2\."):
        open_datalist(folder)


@pytest.mark.parametrize(
    ("sections", "missing"),
    [
        ({"labels": {}}, "labels"),
        ({"training": [], "unlabeled": []}, "training"),
        ({"labels": None, "training": None, "unlabeled": []}, "labels and training"),
    ],
)
def test_labels_and_training_must_be_there(folder, sections, missing):
    with pytest.raises(ValueError, match=rf"dataset\.json must have entries under {missing}, got none"):
        open_datalist(write(folder, **sections))


@pytest.mark.parametrize("section", ["training", "validation", "test"])
@pytest.mark.parametrize("case", ["images/b.nii", {"image": "images/b.nii"}], ids=["string", "image"])
def test_a_case_without_a_label_is_refused(folder, section, case):
    with pytest.raises(ValueError, match=rf"Each case under `{section}` must have image and label, .* without label"):
        open_datalist(write(folder, **{section: [CASE, case]}))


def test_test_cases_of_the_decathlon_which_have_no_labels_are_unlabeled(folder):
    opened = open_datalist(write(folder, test=["./images/b.nii"], unlabeled=[]))
    assert opened.unlabeled == [{"image": str(folder / "images/b.nii")}]
    assert (opened.test, opened.from_test) == ([], 1)
    assert opened.describe() == (
        "1 training, 1 unlabeled (1 of them listed under test, without labels), 0 validation, 0 test"
    )


def test_a_case_without_an_image_is_refused(folder):
    with pytest.raises(ValueError, match=r"Each case under `unlabeled` must have image, .* without image"):
        open_datalist(write(folder, unlabeled=[{"label": "labels/a.nii"}]))


def test_reading_a_list_looks_for_no_file_and_no_label(folder):
    cases = {"training": [{"image": "missing.nii", "label": "gone.nii"}, "images/a.nii"], "unlabeled": ["no.nii"]}
    read = read_datalist(write(folder, **cases))
    assert list(read.cases()) == [
        ("training", {"image": str(folder / "missing.nii"), "label": str(folder / "gone.nii")}),
        ("training", {"image": str(folder / "images/a.nii")}),
        ("unlabeled", {"image": str(folder / "no.nii")}),
    ]


@pytest.mark.parametrize("section", ["training", "unlabeled", "validation", "test"])
def test_a_missing_file_is_named(folder, section):
    case = {"image": "images/c.nii", "label": "labels/a.nii"}
    message = rf"datalist names {re.escape(str(folder))}/images/c\.nii under `{section}`, but there is no such file"
    with pytest.raises(FileNotFoundError, match=message):
        open_datalist(write(folder, **{section: [case]}))


@pytest.mark.parametrize("section", ["training", "test"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_header_that_claims_more_than_its_file_holds_is_refused(folder, section, ending):
    file = folder / f"images/c{ending}"
    header = bytearray((folder / "images/a.nii").read_bytes())
    header[40:48] = np.array([3, 4000, 4000, 2000], dtype="<i2").tobytes()
    file.write_bytes(gzip.compress(header) if ending == ".nii.gz" else header)
    message = rf"The datalist names {re.escape(str(file))} under `{section}`, which is cut short, .* Copy or export"
    with pytest.raises(ValueError, match=message):
        open_datalist(write(folder, **{section: [{**CASE, "image": f"images/c{ending}"}]}))


def test_a_file_of_another_format_is_refused(folder):
    (folder / "images/c.mha").touch()
    with pytest.raises(ValueError, match=r"names .*c\.mha under `unlabeled`, which is not named \.nii or \.nii\.gz"):
        open_datalist(write(folder, unlabeled=["images/c.mha"]))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_tells_the_encoding(folder, encoding):
    content = (write(folder) / "dataset.json").read_text()
    (folder / "dataset.json").write_text(content.replace("liver", "foie é"), encoding=encoding)
    assert open_datalist(folder).class_names == ("background", "foie é", "spleen")


def test_paths_may_have_the_separators_of_windows(folder):
    opened = open_datalist(write(folder, training=[{"image": "images\\a.nii", "label": ".\\labels\\a.nii"}]))
    assert opened.training == [{key: str(folder / CASE[key]) for key in ("image", "label")}]


def test_a_file_may_have_a_backslash_in_its_name(folder):
    save(folder / "images\\b.nii", np.zeros((2, 2, 2)))
    assert open_datalist(write(folder, unlabeled=["images\\b.nii"])).unlabeled == [
        {"image": str(folder / "images\\b.nii")}
    ]


def test_a_path_of_a_machine_with_windows_is_refused_as_such(folder):
    with pytest.raises(ValueError, match=r"from the list's folder, got C:\\data\\a\.nii, which is one of Windows"):
        open_datalist(write(folder, unlabeled=["C:\\data\\a.nii"]))


def test_windows_separators_lead_no_further_than_others(folder):
    with pytest.raises(ValueError, match=r"must name files in its folder, got .*secret\.nii"):
        open_datalist(write(folder, unlabeled=["..\\secret.nii"]))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"background": 0, "liver": 2, "ignore": 1}, "must have `ignore` as greatest value, 2, got 1"),
        ({"0": "background", "1": "Ignore", "2": "liver"}, "must have `ignore` as greatest value, 2, got 1"),
        ({"0": "background", "1": "kidney", "2": "kidney"}, r"must name each class differently, got 'kidney' twice"),
        ({str(i): f"class {i}" for i in range(257)}, r"must name at most 256 classes, got 257"),
    ],
    ids=["ignore of nnU-Net", "ignore by value", "one name twice", "more than a byte holds"],
)
def test_labels_that_would_be_learned_wrongly_are_refused(folder, labels, message):
    with pytest.raises(ValueError, match=message):
        open_datalist(write(folder, labels=labels))


@pytest.mark.parametrize("labels", [{"background": 0, "liver": 1, "ignore": 2}, ["background", "liver", "Ignore"]])
def test_ignore_is_no_class_and_its_voxels_are_not_counted(folder, labels):
    values = np.zeros((2, 2, 2), dtype=np.uint8)
    values[0], values[1, 0] = 2, 1
    save(folder / CASE["label"], values)
    opened = open_datalist(write(folder, labels=labels))
    assert opened.class_names == ("background", "liver")
    assert opened.possible.astype(int).tolist() == [[1, 0], [0, 1], [1, 1]]
    assert opened.training_voxels == [2, 2]
    with pytest.raises(ValueError, match="CPS needs complete label maps"):
        opened.require_complete("CPS")


def test_a_case_says_what_was_looked_for(folder):
    values = np.zeros((2, 2, 2), dtype=np.uint8)
    values[0, 0, 0] = 1
    save(folder / CASE["label"], values)
    labels = {"0": "background", "1": "liver", "2": "spleen"}
    opened = open_datalist(write(folder, labels=labels, training=[{**CASE, "annotated": ["liver"]}]))
    # Of the others nobody knows whether they are spleen, but most of them are not: they weigh as background does.
    assert opened.training_voxels == [7, 1, 0]
    sparse = [{**CASE, "annotated": ["liver"], "annotated_slices": [0]}]
    assert open_datalist(write(folder, labels=labels, training=sparse)).training_voxels == [3, 1, 0]
    assert opened.num_values == 4
    with pytest.raises(ValueError, match="must name classes of `labels`, liver, spleen, got 'lung'"):
        open_datalist(write(folder, labels=labels, training=[{**CASE, "annotated": ["lung"]}]))
    twice = [{**CASE, "annotated": ["liver"]}, {**CASE, "annotated": ["spleen"]}]
    with pytest.raises(ValueError, match="must be the same wherever"):
        open_datalist(write(folder, labels=labels, training=twice))


@pytest.mark.parametrize(
    ("labels", "got"),
    [
        ({"0": "background", "2": "liver"}, r"\[0, 2\]"),
        ({"1": "liver", "2": "spleen"}, r"\[1, 2\]"),
        ({"background": 0, "liver": 0}, r"\[0, 0\]"),
        ({"background": 0, "organs": [1, 2], "spleen": 2}, r"\[0, \[1, 2\], 2\]"),
        ({"0": "background"}, r"\[0\]"),
        (["background"], r"\[0\]"),
    ],
    ids=["gap", "no background", "twice", "region", "background alone", "one name"],
)
def test_labels_that_are_not_0_1_2_are_refused(folder, labels, got):
    with pytest.raises(ValueError, match=rf"`labels` of .*dataset\.json must name the values 0 .*, got {got}"):
        open_datalist(write(folder, labels=labels))


@pytest.mark.usefixtures("small_phantom")
def test_the_phantom_is_made_on_first_use_and_only_then(tmp_path, capsys):
    opened = open_datalist(tmp_path / "phantom", phantom_dir=tmp_path / "phantom")
    assert "Making the abdominal phantom" in capsys.readouterr().out
    assert opened.is_phantom
    assert opened.num_classes == 14
    assert [len(cases) for cases in (opened.training, opened.unlabeled, opened.validation, opened.test)] == [1] * 4
    assert sum(opened.training_voxels) == 16**3
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert open_datalist(tmp_path / "phantom", phantom_dir=str(tmp_path / "phantom")) == opened
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert capsys.readouterr().out == ""


@pytest.mark.usefixtures("small_phantom")
@pytest.mark.parametrize("phantom_dir", [None, "other"])
def test_no_phantom_is_made_in_any_other_folder(tmp_path, phantom_dir):
    with pytest.raises(FileNotFoundError, match="dataset_dir must hold a datalist"):
        open_datalist(tmp_path / "mine", phantom_dir=phantom_dir and tmp_path / phantom_dir)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_phantom")
def test_no_phantom_is_made_over_a_data_set_whose_list_is_misspelt(folder):
    write(folder)
    with pytest.raises(FileNotFoundError, match=r"must hold a datalist datasets\.json"):
        open_datalist(folder, phantom_dir=folder, file="datasets.json")
    assert not open_datalist(folder, phantom_dir=folder).is_phantom


@pytest.mark.parametrize(
    ("power", "expected"),
    [(0, [1, 1, 1]), (1, [1, 5, 2.5]), (0.5, [1, 5**0.5, 2.5**0.5])],
)
def test_class_weights_are_the_formula_of_hand_counted_voxels(folder, power, expected):
    assert class_weights(open_datalist(write(folder)).training_voxels, power) == pytest.approx(
        expected
    )  # of 5, 1 and 2 voxels


def test_a_class_without_voxels_has_the_weight_of_the_rarest_that_has_some(folder):
    opened = open_datalist(write(folder, labels={**LABELS, "3": "pancreas"}))
    assert class_weights(opened.training_voxels, 1) == pytest.approx([1, 5, 2.5, 5])
    assert opened.training_voxels == [5, 1, 2, 0]


def test_a_list_of_unlabeled_cases_alone_has_no_labeled_voxels_and_no_class_weights(folder):
    opened = open_datalist(write(folder, training=[], unlabeled=["images/a.nii"]))
    assert opened.training_voxels == [0, 0, 0]
    with pytest.raises(ValueError, match=r"voxels must have labeled voxels of some class, got \[0, 0, 0\]"):
        class_weights(opened.training_voxels, 1)


@pytest.mark.parametrize(
    "entry",
    [
        {"image": "../secret.nii"},
        {"image": "images/../../secret.nii"},
        {"image": "/etc/passwd"},
        "../secret.nii",
    ],
)
@pytest.mark.parametrize("section", ["training", "unlabeled"])
def test_a_list_names_files_outside_of_its_folder_only_if_it_may(folder, entry, section):
    write(folder, **{section: [entry]})
    with pytest.raises(ValueError, match=f"`{section}` of .* must name files in its folder, got .*set allow_outside"):
        read_datalist(folder)
    (case,) = getattr(read_datalist(folder, allow_outside=True), section)
    assert case["image"] in (str(folder.parent / "secret.nii"), "/etc/passwd")


def test_a_way_that_comes_back_and_a_link_are_inside(folder):
    (folder / "images/link.nii").symlink_to(folder.parent / "elsewhere.nii")
    write(folder, unlabeled=[{"image": f"../{folder.name}/images/b.nii"}, {"image": "images/link.nii"}])
    found = [case["image"] for case in read_datalist(folder).unlabeled]
    assert found == [str(folder / "images/b.nii"), str(folder / "images/link.nii")]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("abc", "must name the values 0"),
        (7, "must name the values 0"),
        ({"0": "background", "²": "liver"}, "must name the values 0"),
        ({"0": "background", "1": ["liver"]}, "must be names"),
        ({"background": 0, "liver": [1, 2]}, "must name the values 0"),
        ([None, "liver"], "must be names"),
    ],
)
def test_labels_of_another_form_are_refused(folder, labels, message):
    with pytest.raises(ValueError, match=f"`labels` of .* {message}"):
        read_datalist(write(folder, labels=labels))


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, '{"labels": ' + "9" * 5000 + "}", '{"labels": ["\\ud800"]}'],
    ids=["brackets", "digits", "half a character"],
)
def test_json_that_python_cannot_hold_is_refused(folder, content):
    with pytest.raises(ValueError, match=r"dataset.json must be JSON of a datalist, got what cannot be read"):
        read_datalist(write(folder, content))
