from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from dinomix_monai.data import make_datalist, open_datalist

Tree = Callable[..., Path]
AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    """Makes NIfTI files of the names; a label map has the classes that stand behind its name."""

    def make(*names: str, **labels: Sequence[int]) -> Path:
        for place, name in enumerate(names):
            write(tmp_path / name, np.full((4, 4, 3), place, dtype=np.int16))
        for name, classes in labels.items():
            values = np.zeros((4, 4, 3), dtype=np.uint8)
            values.flat[: len(classes)] = classes
            write(tmp_path / name, values)
        return tmp_path

    return make


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, AFFINE), path)


def lists(folder: Path, file: str = "dataset.json") -> dict[str, Any]:
    """Entries of the list that was written, which must be one that training opens."""
    open_datalist(folder, file=file)
    return json.loads((folder / file).read_text())


def pairs(content: dict[str, Any]) -> dict[str, str | None]:
    """The label map of each image."""
    sections = ("training", "unlabeled", "validation", "test")
    return {case["image"]: case.get("label") for section in sections for case in content[section]}


LAYOUTS: dict[str, tuple[str, dict[str, str | None]]] = {
    "Synapse's folders": (
        "images in img, label maps in label",
        {"img/img0001.nii.gz": "label/label0001.nii.gz", "img/img0002.nii.gz": None},
    ),
    "two folders": (
        "images in images, label maps in masks",
        {"images/a_ct.nii": "masks/a_mask.nii.gz", "images/b_ct.nii": "masks/b_mask.nii.gz"},
    ),
    "LiTS in one folder": (
        "images beside their label maps",
        {"volume-0.nii": "segmentation-0.nii", "volume-10.nii": "segmentation-10.nii", "volume-1.nii": None},
    ),
    "nnU-Net": (
        "a raw data set of nnU-Net",
        {"imagesTr/a_0000.nii.gz": "labelsTr/a.nii.gz", "imagesTs/b_0000.nii.gz": None},
    ),
    "cases with four digits, which are no channels": (
        "images in imagesTr, label maps in labelsTr",
        {
            "imagesTr/case_0001.nii.gz": "labelsTr/case_0001.nii.gz",
            "imagesTr/case_0002.nii.gz": "labelsTr/case_0002.nii.gz",
            "imagesTr/case_0003.nii.gz": None,
            "imagesTs/case_0004.nii.gz": None,
        },
    ),
    "nnU-Net, cases with four digits": (
        "a raw data set of nnU-Net",
        {"imagesTr/a_0001_0000.nii.gz": "labelsTr/a_0001.nii.gz", "imagesTr/a_0002_0000.nii.gz": None},
    ),
    "nnU-Net's names in two folders": (
        "images in images, label maps in labels",
        {
            "images/c_000_0000.nii.gz": "labels/c_000.nii.gz",
            "images/c_0002_0000.nii.gz": "labels/c_0002.nii.gz",
            "images/c_003_0000.nii.gz": None,
            "images/d.nii.gz": None,
        },
    ),
    "years at the end of names, which are no channels": (
        "images in images, label maps in labels",
        {"images/p_2019.nii.gz": "labels/p.nii.gz", "images/q_2020.nii.gz": None},
    ),
    "decathlon without its list": (
        "images in imagesTr, label maps in labelsTr",
        {"imagesTr/liver_1.nii.gz": "labelsTr/liver_1.nii.gz", "imagesTs/liver_2.nii.gz": None},
    ),
    "KiTS": (
        "a folder for each case",
        {"case_1/imaging.nii.gz": "case_1/segmentation.nii.gz", "case_2/imaging.nii.gz": None},
    ),
    "MONAI Label": (
        "a datastore of MONAI Label",
        {"a.nii.gz": "labels/final/a.nii.gz", "b.NII.GZ": None},
    ),
    "scans alone": ("images alone", {"a.nii.gz": None, "b.nii.gz": None}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_known(tree: Tree, name: str) -> None:
    layout, expected = LAYOUTS[name]
    folder = tree(*expected, **{label: (1, 2) for label in expected.values() if label})
    made = make_datalist(folder)
    assert f"is {layout}: {len(expected)} scans" in made.description
    content = lists(folder)
    assert pairs(content) == expected
    assert content["labels"]["0"] == "background"


def test_cases_of_one_name_are_told_apart_by_their_subfolders(tree: Tree) -> None:
    expected = {
        "images/a/x.nii.gz": "labels/a/x.nii.gz",
        "images/b/x.nii.gz": "labels/b/x.nii.gz",
        "images/c/x.nii.gz": None,
        "images/c/y_ct.nii.gz": "labels/y_seg.nii.gz",
    }
    folder = tree(*expected, **{label: (1,) for label in expected.values() if label})
    make_datalist(folder)
    assert pairs(lists(folder)) == expected


def test_a_label_map_that_two_images_of_one_name_could_have_is_refused(tree: Tree) -> None:
    folder = tree("images/a/x.nii.gz", "images/b/x.nii.gz", **{"labels/x.nii.gz": (1,)})
    with pytest.raises(
        ValueError, match=r"which label map belongs to .*images/a/x.* for a/x\.nii\.gz and b/x\.nii\.gz"
    ):
        make_datalist(folder)


def test_classes_have_the_names_that_autolabel_has_written(tree: Tree) -> None:
    folder = tree("a.nii.gz", **{"labels/final/a.nii.gz": (1, 2)})
    (folder / "labels.json").write_text(json.dumps({"0": "background", "1": "liver", "2": "aorta"}))
    make_datalist(folder)
    assert open_datalist(folder).class_names == ("background", "liver", "aorta")


def test_scans_of_totalsegmentator_get_one_label_map_of_their_masks(tree: Tree) -> None:
    masks = {"liver": (0, 1, 1), "adrenal_gland_left": (1,), "aorta": (0, 0, 0, 1)}
    folder = tree(
        "s1/ct.nii.gz", "s2/ct.nii.gz", **{f"s1/segmentations/{name}.nii.gz": one for name, one in masks.items()}
    )
    make_datalist(folder, class_names=["liver", "adrenal_gland_left"])
    content = lists(folder)
    assert content["labels"] == {"0": "background", "1": "liver", "2": "adrenal_gland_left"}
    assert pairs(content) == {"s1/ct.nii.gz": "s1/label.nii.gz", "s2/ct.nii.gz": None}
    merged = nib.load(folder / "s1/label.nii.gz")
    assert np.asanyarray(merged.dataobj).ravel()[:4].tolist() == [2, 1, 1, 0]
    assert merged.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(merged.affine, AFFINE)


def test_a_mask_that_nobody_has_drawn_is_not_background(tree: Tree) -> None:
    folder = tree("s1/ct.nii.gz", "s2/ct.nii.gz", **{
        "s1/segmentations/liver.nii.gz": (1,), "s2/segmentations/liver.nii.gz": (1,),
        "s2/segmentations/aorta.nii.gz": (1,),
    })  # fmt: skip
    with pytest.raises(ValueError, match=r"must have a mask of every class.*s1 without aorta.*--labels"):
        make_datalist(folder)
    assert not list(folder.rglob("label.nii.gz"))
    assert not (folder / "dataset.json").exists()


def test_a_list_of_the_decathlon_keeps_its_names_and_its_test_scans_are_unlabeled(tree: Tree) -> None:
    names = [f"liver_{number}.nii.gz" for number in range(4)]
    folder = tree(*(f"imagesTr/{name}" for name in names), "imagesTs/liver_9.nii.gz", **{
        f"labelsTr/{name}": (1, 2) for name in names
    })  # fmt: skip
    entries = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    given = {"name": "Liver", "labels": {"0": "background", "1": "liver", "2": "cancer"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(given | {"test": ["./imagesTs/liver_9.nii.gz"]}))
    with pytest.raises(FileExistsError, match=r"dataset\.json must not be there yet.*--overwrite True"):
        make_datalist(folder)
    make_datalist(folder, overwrite=True)
    content = lists(folder)
    assert content["name"] == "Liver"
    assert content["labels"] == given["labels"]
    assert content["unlabeled"] == [{"image": "imagesTs/liver_9.nii.gz"}]
    assert (len(content["training"]), len(content["validation"]), len(content["test"])) == (3, 1, 0)
    assert json.loads((folder / "dataset.previous.json").read_text()) == given | {"test": ["./imagesTs/liver_9.nii.gz"]}


def test_channels_in_one_file_of_the_decathlon_go_into_a_file_each(tree: Tree) -> None:
    names = [f"prostate_{number:02d}.nii.gz" for number in range(3)]
    folder = tree(**{f"labelsTr/{name}": (1, 2) for name in names})
    shape = nib.load(folder / "labelsTr" / names[0]).shape
    values = np.stack([np.full(shape, value, dtype=np.int16) for value in (7, -3)], axis=-1)
    (folder / "imagesTr").mkdir()
    for name in names:
        nib.save(nib.Nifti1Image(values, AFFINE), folder / "imagesTr" / name)
    entries = [{"image": f"./imagesTr/{name}", "label": f"./labelsTr/{name}"} for name in names]
    labels = {"0": "background", "1": "PZ", "2": "TZ"}
    given = {"labels": labels, "modality": {"0": "T2", "1": "ADC"}, "training": entries}
    (folder / "dataset.json").write_text(json.dumps(given))
    made = make_datalist(folder, overwrite=True)
    assert "Each has 2 channels: T2, ADC, written to image_channels from one file." in made.description
    files = ["image_channels/imagesTr/prostate_00_0000.nii.gz", "image_channels/imagesTr/prostate_00_0001.nii.gz"]
    content = lists(folder)
    cases = [case for section in ("training", "validation") for case in content[section]]
    assert {"image": files, "label": "labelsTr/prostate_00.nii.gz"} in cases
    assert content["channel_names"] == {"0": "T2", "1": "ADC"}
    for file, value in zip(files, (7, -3)):
        channel = nib.load(folder / file)
        assert (channel.shape, channel.get_data_dtype()) == (shape, np.int16)
        assert (np.asanyarray(channel.dataobj) == value).all()
        np.testing.assert_array_equal(channel.affine, AFFINE)
    opened = open_datalist(folder)
    assert (opened.num_channels, len(opened.training)) == (2, len(content["training"]))

    # Another time it is the same, and written anew only where the scan has changed.
    written = {file: (folder / file).stat().st_mtime_ns for file in files}
    make_datalist(folder, overwrite=True)
    assert lists(folder) == content
    assert {file: (folder / file).stat().st_mtime_ns for file in files} == written
    make_datalist(folder, overwrite=True, channel=1)
    assert {case["image"] for case in lists(folder)["training"]} <= {
        files[1].replace("00_", f"0{n}_") for n in range(3)
    }


def test_a_series_in_time_is_not_taken_for_channels(tree: Tree) -> None:
    folder = tree(**{"labels/a.nii.gz": (1,), "images/b.nii.gz": (0,)})
    shape = nib.load(folder / "labels/a.nii.gz").shape
    nib.save(nib.Nifti1Image(np.zeros((*shape, 2), dtype=np.int16), AFFINE), folder / "images/a.nii.gz")
    make_datalist(folder)
    assert not (folder / "image_channels").exists()
    with pytest.raises(ValueError, match="Channels go into a file each"):
        open_datalist(folder)


def test_labeled_test_scans_of_nnunet_stay_test_scans_and_its_names_are_taken(tree: Tree) -> None:
    folder = tree("imagesTr/a_0000.nii.gz", "imagesTs/b_0000.nii.gz", **{
        "labelsTr/a.nii.gz": (1,), "labelsTs/b.nii.gz": (1,)
    })  # fmt: skip
    about = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "spleen": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(about))
    make_datalist(folder, file="split.json")
    content = lists(folder, "split.json")
    assert content["labels"] == about["labels"]
    assert content["test"] == [{"image": "imagesTs/b_0000.nii.gz", "label": "labelsTs/b.nii.gz"}]
    assert json.loads((folder / "dataset.json").read_text()) == about


NNUNET = ("imagesTr/a_0000.nii.gz", "imagesTr/a_0001.nii.gz", "imagesTs/b_0000.nii.gz", "imagesTs/b_0001.nii.gz")


def test_images_of_several_channels_have_a_file_for_each(tree: Tree) -> None:
    folder = tree(*NNUNET, **{"labelsTr/a.nii.gz": (1,)})
    about = {"channel_names": {"0": "T1", "1": "FLAIR"}, "labels": {"background": 0, "tumor": 1}}
    (folder / "dataset.json").write_text(json.dumps(about))
    made = make_datalist(folder, file="split.json")
    content = lists(folder, "split.json")
    assert content["training"] == [{"image": list(NNUNET[:2]), "label": "labelsTr/a.nii.gz"}]
    assert content["unlabeled"] == [{"image": list(NNUNET[2:])}]
    assert content["channel_names"] == about["channel_names"]
    assert "Each has 2 channels: T1, FLAIR." in made.description
    assert "training: 1 scans of 1 patients (a)" in made.description


def test_images_of_several_channels_may_lie_in_folders_of_any_name(tree: Tree) -> None:
    files = [f"images/{case}_{channel:04}.nii.gz" for case in ("c_000", "c_001") for channel in (0, 1)]
    folder = tree(*files, **{"labels/c_000.nii.gz": (1,)})
    assert "Each has 2 channels." in make_datalist(folder).description
    content = lists(folder)
    assert content["training"] == [{"image": files[:2], "label": "labels/c_000.nii.gz"}]
    assert content["unlabeled"] == [{"image": files[2:]}]
    tree("images/d.nii.gz")
    with pytest.raises(ValueError, match=r"named NAME_0000\.nii\.gz, NAME_0001\.nii\.gz and so on, got .*d\.nii\.gz"):
        make_datalist(folder, overwrite=True)


def test_one_of_several_channels_can_be_chosen(tree: Tree) -> None:
    folder = tree(*NNUNET[:2], **{"labelsTr/a.nii.gz": (1,)})
    (folder / "dataset.json").write_text(json.dumps({"channel_names": {"0": "T1", "1": "FLAIR"}}))
    with pytest.raises(ValueError, match=r"channel must be from 0 to 1, which .*a_0000\.nii\.gz has, got 2"):
        make_datalist(folder, channel=2, file="split.json")
    made = make_datalist(folder, channel=1, file="split.json")
    assert pairs(lists(folder, "split.json")) == {NNUNET[1]: "labelsTr/a.nii.gz"}
    assert lists(folder, "split.json")["channel_names"] == {"0": "FLAIR"}
    assert f"left out, because no scan or label map: 1 ({NNUNET[0]})" in made.description


def test_a_channel_that_a_case_lacks_is_named(tree: Tree) -> None:
    folder = tree(*NNUNET[:3], **{"labelsTr/a.nii.gz": (1,)})
    with pytest.raises(ValueError, match=r"must have the channels 0 to 1, got b with b_0000\.nii\.gz"):
        make_datalist(folder)


def test_channels_are_named_by_the_files_in_the_folder_of_each_case(tree: Tree) -> None:
    names = [f"{case}/{case}_{kind}.nii.gz" for case in ("BraTS_1", "BraTS_2") for kind in ("flair", "t1", "t1ce")]
    folder = tree(*names, **{"BraTS_1/BraTS_1_seg.nii.gz": (1,)})
    made = make_datalist(folder)
    content = lists(folder)
    assert content["channel_names"] == {"0": "flair", "1": "t1", "2": "t1ce"}
    assert content["training"] == [{"image": names[:3], "label": "BraTS_1/BraTS_1_seg.nii.gz"}]
    assert content["unlabeled"] == [{"image": names[3:]}]
    assert "2 scans of 2 patients" in made.description
    (folder / names[4]).unlink()
    with pytest.raises(ValueError, match="one of each channel under the same names in all folders"):
        make_datalist(folder, overwrite=True)


def test_what_was_looked_for_stays_in_a_new_list(tree: Tree) -> None:
    folder = tree("imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", **{"labelsTr/a.nii.gz": (1, 3)})
    about = {"labels": {"background": 0, "liver": 1, "spleen": 2, "ignore": 3}}
    (folder / "dataset.json").write_text(json.dumps(about))
    make_datalist(folder, overwrite=True)
    content = lists(folder)
    assert content["labels"] == about["labels"]
    content["training"][0] |= {"annotated": ["liver"], "annotated_slices": [0, 1]}
    (folder / "dataset.json").write_text(json.dumps(content))
    made = make_datalist(folder, overwrite=True)
    assert lists(folder)["training"] == content["training"]
    assert "ignore" not in made.description


def test_a_datastore_of_monai_label_says_what_was_looked_for(tree: Tree) -> None:
    labels = {f"labels/final/{name}.nii.gz": (1,) for name in "ab"}
    folder = tree("a.nii.gz", "b.nii.gz", **labels)
    said = {"annotated": ["class 1"], "annotated_slices": None}
    labeled = {name: {"labels": {"final": {"info": info}}} for name, info in (("a", said), ("b", {}))}
    (folder / "datastore_v2.json").write_text(json.dumps({"objects": labeled}))
    make_datalist(folder)
    content = lists(folder)
    assert [case.get("annotated") for case in content["training"]] == [["class 1"], None]
    # It knows better than a list that was made of it before.
    content["training"][1]["annotated"] = ["class 1"]
    (folder / "dataset.json").write_text(json.dumps(content))
    make_datalist(folder, overwrite=True)
    assert [case.get("annotated") for case in lists(folder)["training"]] == [["class 1"], None]
    (folder / "datastore_v2.json").write_text("[]")
    with pytest.raises(ValueError, match=r"datastore_v2\.json must be a list of MONAI Label, got something else"):
        make_datalist(folder, overwrite=True)


def patients(content: dict[str, Any], section: str) -> set[str]:
    return {case["image"].split("/")[1].split("_")[0] for case in content[section]}


def test_no_patient_is_in_two_lists(tree: Tree) -> None:
    names = [f"p{number:02}_frame{frame}.nii.gz" for number in range(12) for frame in (1, 8)]
    labeled = {f"labels/{name}": (1, 2) for name in names if "frame1" in name or name < "p10"}
    folder = tree(*(f"images/{name}" for name in names), **labeled)
    made = make_datalist(folder)
    content = lists(folder)
    members = {section: patients(content, section) for section in ("training", "validation", "test", "unlabeled")}
    assert {section: len(found) for section, found in members.items()} == {
        "training": 8, "validation": 2, "test": 2, "unlabeled": len(members["unlabeled"])
    }  # fmt: skip
    held_out = members["validation"] | members["test"]
    assert not members["validation"] & members["test"]
    assert not held_out & (members["training"] | members["unlabeled"])
    dropped = len(names) - len(pairs(content))
    assert dropped == len(held_out & {"p10", "p11"})
    assert (f"a scan of the same patient is held out: {dropped}" in made.description) is (dropped > 0)


def test_the_seed_decides_and_nothing_else(tree: Tree) -> None:
    names = [f"{number}.nii.gz" for number in range(12)]
    folder = tree(*(f"images/{name}" for name in names), **{f"labels/{name}": (1,) for name in names})
    found = []
    for seed in (0, 0, 1):
        make_datalist(folder, seed=seed, overwrite=True)
        found.append(lists(folder)["test"])
    assert found[0] == found[1] != found[2]


def test_a_rare_class_is_where_it_is_learned_and_where_it_chooses_the_model(tree: Tree) -> None:
    rare = ("03.nii.gz", "17.nii.gz")
    names = [f"{number:02}.nii.gz" for number in range(20)]
    labels = {f"labels/{name}": (1, 2) if name in rare else (1,) for name in names}
    folder = tree(*(f"images/{name}" for name in names), **labels)
    make_datalist(folder)
    content = lists(folder)
    for section in ("training", "validation"):
        assert any(case["image"].endswith(rare) for case in content[section])


@pytest.mark.parametrize(
    ("labeled", "options", "expected"),
    [
        (2, {}, (2, 0, 0)),
        (3, {}, (2, 1, 0)),
        (9, {}, (7, 2, 0)),
        (10, {}, (6, 2, 2)),
        (5, {"validation": 1, "test": 2}, (2, 1, 2)),
        (5, {"validation": 0}, (5, 0, 0)),
    ],
)
def test_how_many_are_held_out(tree: Tree, labeled: int, options: dict, expected: tuple[int, ...]) -> None:
    names = [f"{number}.nii.gz" for number in range(labeled)]
    folder = tree(*(f"images/{name}" for name in names), **{f"labels/{name}": (1,) for name in names})
    make_datalist(folder, **options)
    content = lists(folder)
    assert tuple(len(content[section]) for section in ("training", "validation", "test")) == expected


def test_a_pattern_finds_the_patient(tree: Tree) -> None:
    names = [f"x{scan}-{number}.nii.gz" for number in range(3) for scan in range(2)]
    folder = tree(*(f"images/{name}" for name in names), **{f"labels/{name}": (1,) for name in names})
    assert "6 scans of 6 patients" in make_datalist(folder).description
    made = make_datalist(folder, patient=r"-(\d+)$", overwrite=True)
    assert "6 scans of 3 patients" in made.description
    with pytest.raises(ValueError, match=r"patient must be a regular expression.*finds none in x0-0"):
        make_datalist(folder, patient=r"p(\d+)", overwrite=True)


def test_formats_that_are_not_read_are_named(tree: Tree) -> None:
    folder = tree("images/a.nii.gz", **{"labels/a.nii.gz": (1,)})
    (folder / "images" / "b.mha").touch()
    (folder / "images" / ".hidden.nii.gz").touch()
    assert "left out, because no scan or label map: 1 (images/b.mha)" in make_datalist(folder).description
    for file in folder.rglob("*.nii.gz"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"there is none\. It has images/b\.mha: convert them to NIfTI\."):
        make_datalist(folder, overwrite=True)


WRONG = {
    "label map of no image": (("images/a.nii.gz",), ("labels/b.nii.gz",), r"1 that belong to none, such as .*b\.nii"),
    "two images of one label map": (
        ("images/img_1.nii.gz", "images/scan_1.nii.gz"),
        ("labels/label_1.nii.gz",),
        r"label map belongs to .*img_1\.nii\.gz, got label_1\.nii\.gz for images/img_1\.nii\.gz and images/scan_1",
    ),
    "a scan and a channel of one name": (
        ("images/c_000.nii.gz", "images/c_000_0000.nii.gz"),
        ("labels/c_000.nii.gz",),
        r"got c_000\.nii\.gz for images/c_000_0000\.nii\.gz and images/c_000\.nii\.gz\. Give both files",
    ),
    "a scan that was paired and a channel": (
        ("images/a_0000.nii.gz", "images/scan_a.nii.gz"),
        ("labels/a.nii.gz",),
        r"got a\.nii\.gz for images/a_0000\.nii\.gz and images/scan_a\.nii\.gz",
    ),
    "two label maps of a case": (
        ("a/t1.nii.gz",),
        ("a/seg.nii.gz", "a/mask.nii.gz"),
        r"and one label map at most, got 1 and 2 in .*a\.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_clear_is_refused(tree: Tree, name: str) -> None:
    images, labels, message = WRONG[name]
    folder = tree(*images, **{label: (1,) for label in labels})
    with pytest.raises(ValueError, match=message):
        make_datalist(folder)
    assert not (folder / "dataset.json").exists()


def test_what_cannot_be_is_refused(tree: Tree, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="dataset_dir must be a folder with scans"):
        make_datalist(tmp_path / "none")
    folder = tree("images/a.nii.gz", "images/b.nii.gz", **{"labels/a.nii.gz": (1,), "labels/b.nii.gz": (1, 2)})
    with pytest.raises(ValueError, match=r"must leave labeled patients to learn from, got 1 and 1 of 2"):
        make_datalist(folder, validation=1, test=1)
    with pytest.raises(ValueError, match=r"test must be a number of patients, got -1"):
        make_datalist(folder, test=-1)
    with pytest.raises(FileNotFoundError, match=r"labels must be a folder in .*, got seg, which is none"):
        make_datalist(folder, labels="seg")
    write(folder / "labels/b.nii.gz", np.full((4, 4, 3), 0.5, dtype=np.float32))
    with pytest.raises(ValueError, match=r"Label maps must have whole numbers from 0 to 255, got 0\.5 to 0\.5 in"):
        make_datalist(folder)
    assert not (folder / "dataset.json").exists()
