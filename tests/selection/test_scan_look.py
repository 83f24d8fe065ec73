from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from dinomix_monai.probe import Intensities
from dinomix_monai.selection import ScanLooker
from dinomix_monai.teacher import SliceTokens


class Mean:
    """A teacher whose only token channel is the mean of a square, and that counts the slices it is given."""

    stride, embed_dim, fingerprint = 2, 1, "mean"

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.shapes.append(tuple(x.shape))
        return torch.nn.functional.avg_pool2d(x[:, :1], self.stride)


def save(path: Path, volume: np.ndarray, spacing_mm: tuple[float, float, float] = (10.0, 10.0, 10.0)) -> str:
    nib.save(nib.Nifti1Image(volume.astype(np.float32), np.diag([*spacing_mm, 1.0])), path)
    return str(path)


@pytest.fixture
def teacher() -> Mean:
    return Mean()


@pytest.fixture
def looker(teacher: Mean, tmp_path: Path) -> ScanLooker:
    return ScanLooker(SliceTokens(teacher, channels="repeat"), tmp_path / "looks")


def test_a_square_of_some_12_mm_has_a_token_in_sixteen_slices_at_most(looker, teacher, tmp_path) -> None:
    # 250 x 300 mm are 20 x 24 tokens.
    image = save(tmp_path / "scan.nii", np.random.default_rng(0).normal(size=(25, 30, 40)))
    tokens = looker(image)
    assert tokens.shape == (1024, 1)
    assert tokens.dtype == torch.float16
    assert [shape[0] for shape in teacher.shapes] == [16]
    assert teacher.shapes[0][2:] == (40, 48)


def test_slices_are_spread_evenly_from_foot_to_head(looker, tmp_path) -> None:
    # Slice z has the value z, and 32 of them fall into 16 pairs, of which the upper ones are seen.
    volume = np.broadcast_to(np.arange(32.0), (8, 8, 32))
    seen = looker(save(tmp_path / "scan.nii", volume)).unique()
    expected = np.arange(1.0, 32.0, 2)
    low, high = np.percentile(np.broadcast_to(expected, (8, 8, 16)), [0.5, 99.5])
    np.testing.assert_allclose(seen, np.clip((expected - low) / (high - low), 0, 1), atol=1e-3)


def test_soft_tissue_fills_the_range_of_ct(looker, tmp_path) -> None:
    volume = np.full((20, 20, 10), -1000.0)
    volume[4:16, 4:16] = 40.0
    # 40 HU lie in the middle of -160 to 240, and air below it.
    assert looker(save(tmp_path / "scan.nii", volume)).max() == pytest.approx(0.5, abs=1e-3)
    assert looker(tmp_path / "scan.nii").min() == 0


def test_a_look_is_kept_until_the_scan_changes(looker, teacher, tmp_path) -> None:
    image = save(tmp_path / "scan.nii", np.random.default_rng(0).normal(size=(10, 10, 4)))
    first = looker(image)
    assert torch.equal(looker(image), first)
    assert len(teacher.shapes) == 1
    save(tmp_path / "scan.nii", np.random.default_rng(1).normal(size=(10, 10, 5)))
    assert not torch.equal(looker(image), first)
    assert len(teacher.shapes) == 2


def test_the_look_of_another_teacher_is_another(looker, tmp_path) -> None:
    image = save(tmp_path / "scan.nii", np.random.default_rng(0).normal(size=(10, 10, 4)))
    other = ScanLooker(SliceTokens(Intensities(), channels="repeat"), looker.folder)
    assert looker(image).shape[1] == 1
    assert other(image).shape[1] == 25


def test_a_copy_of_a_scan_looks_the_same_and_channels_are_averaged(looker, tmp_path) -> None:
    volume = np.random.default_rng(0).normal(size=(10, 10, 4))
    one, copy = (save(tmp_path / name, volume) for name in ("one.nii", "copy.nii"))
    assert torch.equal(looker(one), looker(copy))
    torch.testing.assert_close(looker([one, copy]), looker(one))


def test_voxels_that_are_not_finite_are_refused(looker, tmp_path) -> None:
    image = save(tmp_path / "scan.nii", np.full((10, 10, 4), np.nan))
    with pytest.raises(ValueError, match=r"Voxels of a scan must be finite, got NaN or infinity in .*scan.nii"):
        looker(image)
    assert not list(looker.folder.glob("*.pt"))
