from __future__ import annotations

import json
import re
import shutil

import nibabel as nib
import numpy as np
import pytest

from dinomix_monai.data import check_dataset, findings_table, make_phantom, verify_dataset
from dinomix_monai.volumes import label_volume, write_volume

LABELS = {"0": "background", "1": "liver", "2": "spleen"}
TWICE = "List it once, unless it is meant to count twice."
LEAK = "Keep it in one of them: a score must come from cases that have played no part before."


@pytest.fixture
def folder(tmp_path, save, noise):
    """A data set of two labeled, two unlabeled, one validation and one test case, in which all is well."""
    label = np.zeros((6, 5, 4))
    label[:2], label[3] = 1, 2
    for seed, name in enumerate("abcdef"):
        save(f"images/{name}.nii.gz", noise(seed), dtype=np.int16)
        if name not in "cd":
            save(f"labels/{name}.nii.gz", label, dtype=np.uint8)
    write(tmp_path)
    return tmp_path


def case(name):
    return {"image": f"images/{name}.nii.gz", "label": f"labels/{name}.nii.gz"}


def write(folder, **entries):
    content = {
        "labels": LABELS,
        "training": [case("a"), case("b")],
        "unlabeled": ["images/c.nii.gz", {"image": "images/d.nii.gz"}],
        "validation": [case("e")],
        "test": [case("f")],
    }
    (folder / "dataset.json").write_text(json.dumps({**content, **entries}))


def found(folder, **settings):
    return [(f.severity, f.file, f.problem, f.remedy) for f in check_dataset(folder, **settings)]


def test_nothing_is_found_in_a_sound_data_set(folder, monkeypatch):
    settings = {"patch_size": (6, 5, 4), "spacing_mm": (2, 2, 3), "intensity_window": (-160, 240)}
    monkeypatch.chdir(folder.parent)
    for dataset_dir in (folder, str(folder), folder.name):
        assert check_dataset(dataset_dir, **settings) == []


def test_the_phantom_is_made_on_first_use_and_sound(tmp_path, capsys, monkeypatch):
    # Not through the module, of which there are two when its doctests are collected by its file name.
    read = check_dataset.__globals__["read_datalist"].__globals__
    monkeypatch.setitem(read, "make_phantom", lambda root: make_phantom(root, cases=(2, 1, 1, 1), size=(32, 32, 24)))
    assert check_dataset(tmp_path / "phantom", phantom_dir=tmp_path / "phantom", intensity_window=(-160, 240)) == []
    assert "Making the abdominal phantom" in capsys.readouterr().out


def test_all_problems_come_at_once_errors_first(folder, save, noise):
    (folder / "images/a.nii.gz").unlink()
    shutil.copy(folder / "images/c.nii.gz", folder / "images/f.nii.gz")
    (folder / "labels/e.nii.gz").write_text("no image")
    save("images/d.nii.gz", np.zeros((6, 5, 4)))
    write(folder, labels={**LABELS, "3": "pancreas"}, training=[case("a"), case("b"), "images/b.nii.gz"])
    convert, missing = "Convert it to NIfTI.", "Put the file there, or take the case out of the list."
    unlabeled = "Name one, or list it under `unlabeled`."
    assert found(folder, patch_size=(6, 6, 4)) == [
        ("error", "images/a.nii.gz", "does not exist", missing),
        ("error", "images/b.nii.gz", "has no label under `training`", unlabeled),
        ("error", "images/d.nii.gz", "is 0 everywhere", "Export it anew, or take the case out."),
        ("error", "labels/e.nii.gz", "is not NIfTI, whatever its name", convert),
        (
            "error",
            "images/f.nii.gz",
            "is, under `test`, the same volume as images/c.nii.gz under `unlabeled`",
            LEAK,
        ),
        *(
            (
                "warning",
                f"images/{name}.nii.gz",
                "is 6 x 5 x 4 voxels when resampled, less than a patch of 6 x 6 x 4",
                "It will be padded; a smaller patch_size wastes less.",
            )
            for name in "bbcdef"
        ),
        (
            "warning",
            "images/b.nii.gz",
            "is, under `training`, the same volume as images/b.nii.gz under `training`",
            TWICE,
        ),
    ]


@pytest.mark.parametrize(
    ("sections", "severity", "remedy"),
    [
        (("training", "training"), "warning", TWICE),
        (("training", "unlabeled"), "warning", TWICE),
        (("test", "test"), "warning", TWICE),
        (("training", "validation"), "error", LEAK),
        (("training", "test"), "error", LEAK),
        (("unlabeled", "test"), "error", LEAK),
        (("validation", "test"), "error", LEAK),
    ],
)
def test_the_same_voxels_in_two_files_are_found_whatever_their_names(folder, save, noise, sections, severity, remedy):
    first, second = sections
    label = {"label": "labels/a.nii.gz"}
    save("images/x.nii.gz", noise(9), dtype=np.int16)
    save("images/y.nii", noise(9))
    listed = json.loads((folder / "dataset.json").read_text())
    for section, image in ((first, "images/x.nii.gz"), (second, "images/y.nii")):
        listed[section] = [*listed[section], {"image": image, **label}]
    write(folder, **listed)
    problem = f"is, under `{second}`, the same volume as images/x.nii.gz under `{first}`"
    assert found(folder) == [(severity, "images/y.nii", problem, remedy)]


def test_a_volume_in_three_lists_is_found_twice(folder):
    write(folder, validation=[case("a")], test=[case("a")])
    assert [finding[:3] for finding in found(folder)] == [
        ("error", "images/a.nii.gz", f"is, under `{section}`, the same volume as images/a.nii.gz under `training`")
        for section in ("validation", "test")
    ]


def test_labels_that_a_model_has_drawn_are_found_where_they_score(folder):
    for name in "abef":
        file = folder / "labels" / f"{name}.nii.gz"
        label = nib.load(file)
        meta = {"spatial_shape": label.shape}
        write_volume(label_volume(np.asarray(label.dataobj).astype(np.uint8), label.affine, meta), file)
    # What a viewer saves is a person's: it writes a header of its own.
    label = nib.load(folder / "labels" / "f.nii.gz")
    nib.save(nib.Nifti1Image(np.asarray(label.dataobj), label.affine), folder / "labels" / "f.nii.gz")
    problem = "was drawn by a model, as its header says, and scores under `validation`"
    remedy = "Let a person correct and save it, or list it under `training`."
    assert found(folder) == [("warning", "labels/e.nii.gz", problem, remedy)]


def test_a_class_without_labeled_voxels_is_found(folder, save):
    write(folder, labels={**LABELS, "3": "pancreas", "4": "colon"})
    # In validation it is of no use.
    save("labels/e.nii.gz", np.full((6, 5, 4), 4), dtype=np.uint8)
    remedy = "It cannot be learned; label it, or take it out of `labels`."
    assert found(folder) == [
        ("warning", "dataset.json", f"names {name}, which no label under `training` has", remedy)
        for name in ("pancreas", "colon")
    ]


def test_a_class_that_an_unreadable_label_may_have_is_not_called_missing(folder):
    write(folder, labels={**LABELS, "3": "pancreas"})
    (folder / "labels/a.nii.gz").unlink()
    assert [finding[1] for finding in found(folder)] == ["labels/a.nii.gz"]


@pytest.mark.parametrize(
    ("section", "cases", "problem", "remedy"),
    [
        ("training", [case("a")], "lists one labeled case", "Label more: one patient does not stand for others."),
        (
            "unlabeled",
            [],
            "lists no unlabeled cases",
            "Training will be supervised alone; list images under `unlabeled`.",
        ),
        (
            "validation",
            [],
            "lists no validation cases",
            "The last model will be kept instead of the best; list labeled cases under `validation`.",
        ),
    ],
)
def test_too_few_cases_are_found(folder, section, cases, problem, remedy):
    write(folder, **{section: cases})
    assert found(folder) == [("warning", "dataset.json", problem, remedy)]


def test_without_any_label_training_must_not_begin_but_a_site_of_a_federation_may(folder):
    write(folder, training=[])
    remedy = "List labeled cases under `training`; scans alone can be learned from in a federation only."
    assert found(folder) == [("error", "dataset.json", "lists no labeled cases", remedy)]
    assert found(folder, needs_labels=False) == []


def test_without_test_cases_all_is_well(folder):
    write(folder, test=[])
    assert found(folder) == []


def test_labels_of_unlabeled_cases_are_not_opened(folder):
    (folder / "labels/c.nii.gz").write_text("no image")
    write(folder, unlabeled=[case("c"), {"image": "images/d.nii.gz", "label": "labels/missing.nii.gz"}])
    assert found(folder) == []


def test_the_folder_may_be_named_by_way_of_another(folder):
    (folder / "images/c.nii.gz").unlink()
    assert [finding[1] for finding in found(folder / "labels" / "..")] == ["images/c.nii.gz"]


def test_files_outside_of_the_folder_are_named_in_full(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "a.nii"
    write(folder, unlabeled=[str(elsewhere)])
    assert [finding[1] for finding in found(folder, allow_outside=True)] == [str(elsewhere)]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", r"dataset\.json must be JSON, got an error at line 1"),
        ('{"labels": {}}', r"dataset\.json must have entries under labels and training, got none"),
        ('{"labels": ["a", "b"], "training": [{}]}', "Each case under `training` must have image and label"),
        (None, r"dataset_dir must hold a datalist dataset\.json"),
    ],
)
def test_a_list_that_cannot_be_used_is_the_only_finding(folder, content, problem):
    (folder / "dataset.json").unlink()
    if content is not None:
        (folder / "dataset.json").write_text(content)
    ((severity, file, text, remedy),) = found(folder)
    assert (severity, file, remedy) == ("error", "dataset.json", "Correct the list.")
    assert re.match(f"cannot be used: .*{problem}", text)


def test_another_list_of_the_folder_can_be_checked(folder):
    (folder / "dataset.json").rename(folder / "other.json")
    assert found(folder, file="other.json") == []


def test_an_argument_that_makes_no_sense_is_refused(folder):
    with pytest.raises(ValueError, match="patch_size must have three numbers above 0, got 64"):
        check_dataset(folder, patch_size=64)


def test_errors_keep_training_from_beginning(folder):
    (folder / "images/a.nii.gz").unlink()
    write(folder, validation=[])
    with pytest.raises(ValueError, match="dataset_dir must hold a data set without errors, got ") as error:
        verify_dataset(folder)
    first, table = str(error.value).split("\n", 1)
    assert first.endswith(f"{folder}. With `check_data` off, the run begins regardless.")
    assert table == findings_table(check_dataset(folder))
    assert [line.split()[0] for line in table.splitlines()] == ["severity", "error", "warning"]


def test_warnings_are_printed_and_training_begins(folder, capsys):
    write(folder, validation=[])
    verify_dataset(folder)
    assert capsys.readouterr().out == findings_table(check_dataset(folder)) + "\n"


def test_without_a_finding_nothing_is_printed(folder, capsys):
    verify_dataset(folder)
    # The bar is for terminals.
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("section", ["validation", "test"])
def test_a_case_that_would_be_scored_twice_is_found(folder, section):
    write(folder, **{section: [case("e"), case("e")], "validation" if section == "test" else "test": []})
    remedy = "List it once: a case that is scored twice counts twice, and runs cannot be compared."
    assert ("error", "images/e.nii.gz", f"is listed twice under `{section}`", remedy) in found(folder)


def test_test_cases_without_labels_are_found_to_be_unlabeled(folder):
    write(folder, test=["images/f.nii.gz"])
    problem = "lists cases under `test` without any label (1)"
    remedy = "They count as unlabeled cases and are learned from; if you will score them, name their labels."
    assert found(folder) == [("warning", "dataset.json", problem, remedy)]


def test_validation_cases_that_choose_no_model_are_found(folder, save):
    save("labels/e.nii.gz", np.zeros((6, 5, 4)), dtype=np.uint8)
    assert [finding[:3] for finding in found(folder)] == [
        ("warning", "labels/e.nii.gz", "has nothing but background"),
        ("warning", "dataset.json", "lists validation cases with nothing but background"),
    ]


def test_only_the_lists_that_are_asked_for_are_read(folder):
    for name in ("a", "c", "e"):
        (folder / f"images/{name}.nii.gz").unlink()
    write(folder, training=[case("a")])
    assert found(folder, sections=["test"]) == []
    assert [finding[1] for finding in found(folder, sections=["validation"])] == ["images/e.nii.gz"]
    assert found(folder, sections=["nothing"]) == []
