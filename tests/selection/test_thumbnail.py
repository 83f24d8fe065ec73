from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from dinomix_monai.selection import Thumbnails


def save(path: Path, volume: np.ndarray, affine: np.ndarray | None = None) -> str:
    nib.save(nib.Nifti1Image(volume.astype(np.float32), np.eye(4) if affine is None else affine), path)
    return str(path)


@pytest.fixture
def thumbnails(tmp_path: Path) -> Thumbnails:
    return Thumbnails(tmp_path / "thumbnails")


def test_a_box_has_the_mean_of_its_voxels_in_the_window_of_soft_tissue(thumbnails, tmp_path) -> None:
    volume = np.full((16, 16, 24), -1000.0)
    volume[:2, 2:4, :3] = 40  # a whole box, in the middle of -160 to 240
    volume[:2, 2:4, 3:6].flat[:6] = 1000  # half of the next one, above the window
    found = thumbnails(save(tmp_path / "scan.nii", volume))
    expected = np.zeros((1, 8, 8, 8))
    expected[0, 0, 1, :2] = 0.5
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_other_images_are_scaled_by_themselves(thumbnails, tmp_path) -> None:
    volume = np.random.default_rng(0).uniform(size=(10, 12, 9))
    one, other = (thumbnails(save(tmp_path / f"{scale}.nii", scale * volume + scale)) for scale in (1, 300))
    np.testing.assert_allclose(one, other, atol=1e-4)
    assert 0.3 < one.mean() < 0.7


def test_the_orientation_of_a_file_does_not_matter(thumbnails, tmp_path) -> None:
    volume = np.random.default_rng(0).uniform(size=(8, 8, 8))
    turned = save(tmp_path / "turned.nii", volume[::-1], np.diag([-1.0, 1, 1, 1]))
    np.testing.assert_array_equal(thumbnails(save(tmp_path / "scan.nii", volume)), thumbnails(turned))


def test_a_thumbnail_is_kept_until_the_scan_changes(thumbnails, tmp_path) -> None:
    image = save(tmp_path / "scan.nii", np.random.default_rng(0).uniform(size=(8, 8, 8)))
    first = thumbnails(image)
    np.save(thumbnails.file(image), first + 1)
    np.testing.assert_array_equal(thumbnails(image), first + 1)
    save(tmp_path / "scan.nii", np.random.default_rng(1).uniform(size=(8, 8, 9)))
    assert thumbnails(image).max() <= 1


def test_channels_follow_one_another(thumbnails, tmp_path) -> None:
    files = [save(tmp_path / f"{seed}.nii", np.random.default_rng(seed).uniform(size=(8, 8, 8))) for seed in range(2)]
    np.testing.assert_array_equal(thumbnails(files), np.concatenate([thumbnails(file) for file in files]))


def test_voxels_that_are_not_finite_are_refused(thumbnails, tmp_path) -> None:
    image = save(tmp_path / "scan.nii", np.full((8, 8, 8), np.nan))
    with pytest.raises(ValueError, match=r"Voxels of a scan must be finite, got NaN or infinity in .*scan.nii"):
        thumbnails(image)
    assert not thumbnails.file(image).is_file()
