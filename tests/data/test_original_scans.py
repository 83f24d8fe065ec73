from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import torch

from dinomix_monai.data import OriginalScans, prepare_dataset, read_protocol

AFFINE = np.array([[-0.8, 0, 0, 9.0], [0, 0.8, 0, -3], [0, 0, 3, 5], [0, 0, 0, 1]])
SHAPE = (21, 20, 9)


@pytest.fixture
def folders(tmp_path):
    """Raw folder, prepared folder and protocol of scans of 21 x 20 x 9 voxels on 7 x 10 x 27."""
    random = np.random.default_rng(0)
    for case in "abc":
        volumes = {"": random.normal(60, 150, SHAPE).astype(np.int16), "_label": random.integers(0, 3, SHAPE)}
        for postfix, volume in volumes.items():
            nib.save(nib.Nifti1Image(volume.astype(np.int16), AFFINE), tmp_path / f"{case}{postfix}.nii")
    protocol = tmp_path / "tiny.json"
    split = {"labeled": {"100": ["a"]}, "train": ["a"], "validation": ["b"], "test": ["c"], "default_labeled": 100}
    protocol.write_text(
        json.dumps(
            {
                **{"title": "T", "description": "D", "class_names": ["background", "liver", "spleen"]},
                **{"grid": [7, 10, 27], "window": [-75, 275]},
                "files": [{"image": "{id}.nii", "label": "{id}_label.nii"}],
                "protocols": [{"name": "tiny", "source": "here", **split}],
            }
        )
    )
    prepared = prepare_dataset(read_protocol(protocol), tmp_path, tmp_path / "out", workers=1).parent
    return tmp_path, prepared, protocol


def test_every_voxel_of_the_scan_has_the_class_of_the_place_it_lies_at(folders):
    raw, prepared, protocol = folders
    image = nib.load(prepared / "images/c.nii.gz")
    prediction = torch.randint(0, 3, (1, 7, 10, 27), generator=torch.Generator().manual_seed(0))
    moved, label, spacing = OriginalScans(prepared, raw, protocol)(prepared / "images/c.nii.gz", prediction)
    assert spacing == pytest.approx([0.8, 0.8, 3.0])
    np.testing.assert_array_equal(label[0], np.asanyarray(nib.load(raw / "c_label.nii").dataobj))
    # By the affines of the two files: from a voxel of the scan to mm and on to a voxel of the prepared volume.
    voxels = np.moveaxis(np.indices(SHAPE), 0, -1).reshape(-1, 3)
    places = nib.affines.apply_affine(np.linalg.inv(image.affine) @ AFFINE, voxels)
    expected = prediction[0].numpy()[tuple(np.rint(places).astype(int).T)].reshape(SHAPE)
    np.testing.assert_array_equal(moved[0], expected)


def test_a_scan_that_is_not_the_one_of_then_is_refused(folders):
    raw, prepared, protocol = folders
    for name in ("c.nii", "c_label.nii"):
        nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4)), raw / name)
    with pytest.raises(
        ValueError, match=r"raw_dir must hold the scans that were prepared, got c of shape \(21, 20, 9\)"
    ):
        OriginalScans(prepared, raw, protocol)("c.nii.gz", torch.zeros(1, 7, 10, 27))


def test_another_case_and_a_folder_that_was_not_prepared_are_refused(folders):
    raw, prepared, protocol = folders
    with pytest.raises(ValueError, match=r"image must be of a case in originals.json, got d\.nii\.gz"):
        OriginalScans(prepared, raw, protocol)("d.nii.gz", torch.zeros(1, 7, 10, 27))
    (prepared / "originals.json").unlink()
    with pytest.raises(FileNotFoundError, match="dataset_dir must be a folder that `prepare` has made"):
        OriginalScans(prepared, raw, protocol)


def test_the_packages_own_protocol_is_found_by_the_name_in_the_list(folders, tmp_path):
    raw, prepared, _ = folders
    content = json.loads((prepared / "dataset.json").read_text())
    content["protocol"] |= {"dataset": "synapse", "name": "dhc"}
    (prepared / "dataset.json").write_text(json.dumps(content))
    scans = OriginalScans(prepared, raw)
    assert (scans.protocol.dataset, scans.protocol.name) == ("synapse", "dhc")
    with pytest.raises(FileNotFoundError, match="raw_dir must hold every case of protocol dhc"):
        scans("c.nii.gz", torch.zeros(1, 7, 10, 27))
