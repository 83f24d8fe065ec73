from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from dinomix_monai.transforms import LoadVolumed
from dinomix_monai.volumes import channel_windows

AFFINE = np.diag([2.0, 3.0, 4.0, 1.0])


def save(path: Path, values: np.ndarray, axes: str = "RAS", affine: np.ndarray = AFFINE) -> str:
    """Writes a volume, stored along other axes at the same places."""
    volume = nib.Nifti1Image(values.astype(np.float32), affine)
    nib.save(volume.as_reoriented(nib.orientations.axcodes2ornt(axes)), path)
    return str(path)


def load(image: Any) -> Any:
    return LoadVolumed(["image", "label"], allow_missing_keys=True)({"image": image})["image"]


def test_channels_become_one_image_in_the_place_of_the_first(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(3, 5, 4, 6))
    axes = ("LPS", "RAS", "SPR")
    files = [save(tmp_path / f"a_{i}.nii", one, name) for i, (one, name) in enumerate(zip(values, axes))]
    image = load(files)
    assert image.shape == (3, 5, 4, 6)
    # The first one is stored from left to right and from front to back.
    np.testing.assert_array_equal(image.numpy(), values.astype(np.float32)[:, ::-1, ::-1])
    alone = load(files[0])
    assert torch.equal(image[:1].as_tensor(), alone.as_tensor())
    assert torch.equal(image.affine, alone.affine)
    assert image.meta["filename_or_obj"] == files[0]


@pytest.mark.parametrize(
    ("shape", "affine", "difference"),
    [
        ((5, 4, 7), AFFINE, r"has 5 x 4 x 7 voxels and the first one 5 x 4 x 6"),
        ((5, 4, 6), AFFINE + np.eye(4)[:, [3, 3, 3, 0]], r"lies up to 1 mm off the first one"),
    ],
)
def test_a_channel_elsewhere_is_refused(
    tmp_path: Path, shape: Sequence[int], affine: np.ndarray, difference: str
) -> None:
    files = [save(tmp_path / "t1.nii", np.ones((5, 4, 6))), save(tmp_path / "t2.nii", np.ones(shape), affine=affine)]
    with pytest.raises((ValueError, RuntimeError)) as caught:
        load(files)
    assert "All channels of an image must have the voxels of its first one" in str(caught.value)
    assert difference in str(caught.value)


@pytest.mark.parametrize("window", [(), (1,), (1, 2, 3), (5, 5), (240, -160), "CT", (True, 2), ((0, 1), (3, 2)), ([],)])
def test_what_is_no_window_is_refused(window: Any) -> None:
    with pytest.raises(ValueError, match="intensity_window must be two intensities"):
        channel_windows(window)


def test_windows_must_be_as_many_as_channels() -> None:
    assert channel_windows([(0, 1), None, (2, 3)], 3) == [(0, 1), None, (2, 3)]
    assert channel_windows(None, 2) == [None, None]
    with pytest.raises(ValueError, match="an entry for each of 2 channels, or be one for all"):
        channel_windows([(0, 1), None, (2, 3)], 2)
