from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import SaveImaged

from dinomix_monai.transforms import LoadVolumed, SaveLabeld


@pytest.fixture
def label(save):
    """A label map on the grid of a single slice, as inference gives it."""
    path = save("scan.1.nii", np.zeros((5, 4, 1)), np.diag([-2.0, 2.0, 3.0, 1]))
    image = LoadVolumed("image")({"image": path})["image"]
    return MetaTensor(torch.full((1, 5, 4, 1), 7, dtype=torch.uint8), meta=image.meta)


def test_a_label_map_is_written_beside_no_other_name_and_keeps_its_third_axis(label, tmp_path):
    data = SaveLabeld("pred", tmp_path / "out")({"pred": label, "other": 1})
    assert data == {"pred": label, "other": 1}
    written = nib.load(tmp_path / "out" / "scan.1_seg.nii.gz")
    assert written.shape == (5, 4, 1)
    assert written.get_data_dtype() == np.uint8
    assert (np.asarray(written.dataobj) == 7).all()
    np.testing.assert_array_equal(written.affine, np.diag([-2.0, 2.0, 3.0, 1]))


def test_hosts_that_write_by_themselves_know_it_by_its_class():
    assert isinstance(SaveLabeld("pred", "out"), SaveImaged)


def test_a_folder_that_cannot_be_written_to_is_named(label, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(OSError, match=r"scan\.1_seg\.nii\.gz must be a file that can be written to, got: "):
        SaveLabeld("pred", tmp_path / "out")({"pred": label})


def test_a_missing_label_map_is_passed_over_where_that_is_allowed(tmp_path):
    assert SaveLabeld("pred", tmp_path, allow_missing_keys=True)({"other": 1}) == {"other": 1}
