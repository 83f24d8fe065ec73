from __future__ import annotations

import logging

import nibabel as nib
import numpy as np
import pytest

from dinomix_monai.data import image_files


def test_images_of_a_folder_are_in_the_order_of_their_names(tmp_path):
    for name in ("notes.txt", "d.nii.json", "._a.nii"):
        (tmp_path / name).touch()
    for name in ("b.nii.gz", "a.nii", "c.nii"):
        save_volume(tmp_path / name)
    assert image_files(tmp_path) == [{"image": str(tmp_path / name)} for name in ("a.nii", "b.nii.gz", "c.nii")]


def save_volume(path, shape=(2, 3, 4)):
    nib.save(nib.Nifti1Image(np.zeros(shape, dtype=np.uint8), np.eye(4)), path)


def test_what_is_no_single_volume_is_refused_before_any_is_segmented(tmp_path):
    save_volume(tmp_path / "a.nii")
    save_volume(tmp_path / "b.nii.gz", (2, 3, 4, 5))
    with pytest.raises(
        ValueError, match=r"must be NIfTI of one volume, got .*b\.nii\.gz, which has the shape 2 x 3 x 4 x 5"
    ):
        image_files(tmp_path)
    save_volume(tmp_path / "b.nii.gz", (2, 3, 4, 1))
    assert len(image_files(tmp_path)) == 2
    (tmp_path / "c.nii").write_text("no image")
    with pytest.raises(ValueError, match=r"Volumes must be NIfTI of one volume, got .*c\.nii, which is not NIfTI"):
        image_files(tmp_path)


def test_two_images_that_would_share_a_label_map_are_refused(tmp_path):
    for name in ("a.nii", "a.NII.gz"):
        save_volume(tmp_path / name)
    with pytest.raises(ValueError, match=r"Images must differ in name but for \.gz, got .*a\.NII\.gz and a\.nii"):
        image_files(tmp_path)


def test_an_image_may_be_one_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_volume(tmp_path / "b.nii")
    assert image_files("b.nii") == [{"image": str(tmp_path / "b.nii")}]


def test_a_missing_folder_of_images_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dataset_dir must be a NIfTI file or .*missing, which does not exist"):
        image_files(tmp_path / "missing")


def test_a_folder_without_nifti_is_refused_and_what_it_has_is_named(tmp_path):
    for name in ("scan.dcm", "a.mha", ".DS_Store"):
        (tmp_path / name).touch()
    (tmp_path / "b.nii").mkdir()
    message = r"dataset_dir must be a NIfTI file \(\.nii, \.nii\.gz\) or .*, got .* with a\.mha, b\.nii/, scan\.dcm\.$"
    with pytest.raises(FileNotFoundError, match=message):
        image_files(tmp_path)


def test_a_file_of_another_format_is_refused(tmp_path):
    (tmp_path / "scan.dcm").touch()
    with pytest.raises(ValueError, match=r"got .*scan\.dcm, which is not named \.nii or \.nii\.gz\. Convert it"):
        image_files(tmp_path / "scan.dcm")


def test_what_is_left_out_is_named(tmp_path, caplog):
    for name in ("b.nrrd", "a.mha", "c.dcm", "notes.txt", "e.json", "f.bval", "._a.nii.gz"):
        (tmp_path / name).touch()
    (tmp_path / "sub").mkdir()
    for name in ("a.nii", "sub/d.nii", "B.NII.GZ", "a_seg.nii.gz"):
        save_volume(tmp_path / name)
    as_label_map(tmp_path / "a_seg.nii.gz")
    with caplog.at_level(logging.WARNING):
        found = image_files(tmp_path)
    assert found == [{"image": str(tmp_path / name)} for name in ("B.NII.GZ", "a.nii")]
    # The first five in the order of their names.
    text = "because no NIfTI scan: a.mha, a_seg.nii.gz, b.nrrd, c.dcm, e.json and 3 more."
    assert [record.getMessage() for record in caplog.records] == [f"Left out of {tmp_path}, {text}"]


def as_label_map(path):
    volume = nib.load(path)
    volume.header.set_intent("label")
    nib.save(nib.Nifti1Image(np.asarray(volume.dataobj), volume.affine, volume.header), path)


def test_nothing_is_said_where_nothing_is_left_out(tmp_path, caplog):
    save_volume(tmp_path / "a.nii")
    image_files(tmp_path)
    assert not caplog.records


def test_only_label_maps_may_be_replaced(tmp_path):
    for name in ("a.nii", "a_seg.nii.gz"):
        save_volume(tmp_path / name)
    message = r"under the names of label maps, got .*a_seg\.nii\.gz, which that of a\.nii would replace"
    for path in (tmp_path, tmp_path / "a.nii"):
        with pytest.raises(ValueError, match=message):
            image_files(path, tmp_path)
    assert len(image_files(tmp_path, tmp_path / "output")) == 2
    as_label_map(tmp_path / "a_seg.nii.gz")
    for path in (tmp_path, tmp_path / "a.nii"):
        assert image_files(path, tmp_path) == [{"image": str(tmp_path / "a.nii")}]


def test_what_a_killed_run_left_may_be_replaced(tmp_path):
    save_volume(tmp_path / "a.nii")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a_seg.nii.gz").write_bytes(b"\x1f\x8b\x08")
    assert len(image_files(tmp_path / "a.nii", tmp_path / "out")) == 1


def test_channels_of_an_image_are_found_by_their_numbers(tmp_path):
    for name in ("b_0000.nii", "b_0001.nii", "a_1_0000.nii.gz", "a_1_0001.nii.gz"):
        save_volume(tmp_path / name)
    a, b = (
        [str(tmp_path / f"{name}_000{i}{end}") for i in (0, 1)] for name, end in (("a_1", ".nii.gz"), ("b", ".nii"))
    )
    assert image_files(tmp_path, num_channels=2) == [{"image": a}, {"image": b}]
    assert image_files(b[1], num_channels=2) == [{"image": b}]
    assert image_files(b[::-1], num_channels=2) == [{"image": b[::-1]}]
    # Nobody asked for channels.
    assert len(image_files(tmp_path)) == 4


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a_0000.nii",), "must have the channels 0 to 1, got a with a_0000.nii"),
        (("a_0000.nii", "a_0002.nii"), "must have the channels 0 to 1, got a with a_0000.nii, a_0002.nii"),
        (("a_0000.nii", "a_0001.nii", "t1.nii"), "must have a file for each, named NAME_0000.nii.gz"),
    ],
)
def test_an_image_without_its_channels_is_refused(tmp_path, names, message):
    for name in names:
        save_volume(tmp_path / name)
    with pytest.raises(ValueError, match=message):
        image_files(tmp_path, num_channels=2)


def test_a_list_has_a_file_for_each_channel(tmp_path):
    save_volume(tmp_path / "a.nii")
    with pytest.raises(ValueError, match="must have 2 channels, a file for each, got 1 files"):
        image_files([tmp_path / "a.nii"], num_channels=2)
