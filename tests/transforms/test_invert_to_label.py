from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CropForegroundd,
    Flipd,
    Invertd,
    Orientationd,
    Rotated,
    Spacing,
    Spacingd,
    SpatialPadd,
)
from scipy.ndimage import gaussian_filter

from dinomix_monai.transforms import InvertToLabeld, interpolated_argmax

CLASSES = 6


def image_of(shape: Sequence[int], affine: np.ndarray) -> MetaTensor:
    """What ``LoadImage`` gives."""
    image = MetaTensor(torch.rand(1, *shape), affine=affine)
    image.meta |= {"original_affine": affine, "spatial_shape": np.array(shape), "filename_or_obj": "case.nii.gz"}
    return image


def smooth_logits(shape: Sequence[int]) -> torch.Tensor:
    noise = np.random.RandomState(0).randn(CLASSES, *shape)
    return torch.from_numpy(np.stack([gaussian_filter(channel, 2.0) for channel in noise])).float() * 20


def affine_of(spacing_mm: Sequence[float], turned: bool = False) -> np.ndarray:
    affine = np.diag([*spacing_mm, 1.0])
    if turned:  # 20 degrees about the third axis
        c, s = np.cos(0.35), np.sin(0.35)
        affine[:2, :2] = np.array([[c, -s], [s, c]]) @ affine[:2, :2]
    affine[:3, 3] = (-30.0, 12.5, 700.0)
    return affine


PREPROCESSINGS = {
    "coarser": [Spacingd("image", (4.0, 4.0, 5.0))],
    "finer": [Spacingd("image", (1.1, 1.3, 1.7))],
    "reordered": [Orientationd("image", "SPL", labels=None), Spacingd("image", (4.0, 3.0, 5.0))],
    "flipped and padded": [Spacingd("image", (3.0, 3.0, 3.0)), Flipd("image", 1), SpatialPadd("image", (40, 40, 40))],
    "cropped": [
        CropForegroundd("image", source_key="image", select_fn=lambda x: x > 0.9),
        Spacingd("image", (3, 3, 3)),
    ],
}


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("name", PREPROCESSINGS)
def test_label_is_the_argmax_of_the_inverted_logits(name: str, turned: bool) -> None:
    preprocessing = Compose(PREPROCESSINGS[name])
    image = preprocessing({"image": image_of((42, 37, 25), affine_of((-2.0, -1.5, 3.0), turned))})["image"]
    sample = {"image": image, "pred": MetaTensor(smooth_logits(image.shape[1:]), affine=image.affine)}
    inverted = Invertd("pred", preprocessing, "image", nearest_interp=False)(sample)["pred"]
    # Invertd has 0 where logits were cropped away, and continues the border of what is left once pads are cropped off.
    compared = torch.zeros(42, 37, 25, dtype=torch.bool)
    compared[2:-2, 2:-2, 2:-2] = inverted.any(0)[2:-2, 2:-2, 2:-2].as_tensor()
    inverted = inverted.as_tensor()

    label = InvertToLabeld("pred", "image")(sample)["pred"]

    assert label.dtype == torch.uint8
    assert label.shape == (1, *inverted.shape[1:]) == (1, 42, 37, 25)
    best = inverted.topk(2, dim=0).values
    decided = compared & ((best[0] - best[1]) > 1e-3)
    assert decided.float().mean() > 0.5
    assert torch.equal(label[0][decided].long(), inverted.argmax(0)[decided])
    np.testing.assert_allclose(label.affine, affine_of((-2.0, -1.5, 3.0), turned), atol=1e-6)
    assert label.meta["filename_or_obj"] == "case.nii.gz"


def test_a_class_may_win_between_cells_where_it_wins_nowhere() -> None:
    logits = torch.tensor([[3.0, 0.0], [2.0, 2.0], [0.0, 3.0]])[:, :, None].expand(3, 2, 2)
    half = torch.diag(torch.tensor([0.25, 1.0, 1.0]))
    assert interpolated_argmax(logits, half, (5, 2))[0].T.tolist() == [[0, 0, 1, 2, 2]] * 2


def test_of_equal_classes_the_first_is_taken() -> None:
    assert interpolated_argmax(torch.zeros(4, 3, 3, 3), torch.eye(4), (3, 3, 3)).max() == 0


def test_the_border_of_the_logits_is_continued() -> None:
    logits = torch.zeros(3, 4, 4, 4)
    logits[1, 0], logits[2, -1] = 1, 1
    shifted = torch.eye(4)
    shifted[0, 3] = -3
    label = interpolated_argmax(logits, shifted, (10, 4, 4))[0, :, 0, 0]
    assert label.tolist() == [1, 1, 1, 1, 0, 0, 2, 2, 2, 2]


def test_axes_of_one_cell_are_continued() -> None:
    logits = smooth_logits((1, 5, 1))
    label = interpolated_argmax(logits, torch.eye(4), (3, 5, 2))
    assert torch.equal(label[0].long(), logits.argmax(0).expand(3, 5, 2))


def test_more_classes_than_a_byte_can_tell() -> None:
    logits = torch.eye(300)[:, None]
    label = interpolated_argmax(logits, torch.eye(3), (1, 300))
    assert label.tolist() == [[list(range(300))]]


def test_image_without_affine_is_refused() -> None:
    sample = {"image": torch.rand(1, 4, 4, 4), "pred": torch.rand(2, 4, 4, 4)}
    with pytest.raises(TypeError, match="image must be a MetaTensor, whose affine tells where it lies, got Tensor"):
        InvertToLabeld("pred", "image")(sample)


def test_where_preprocessing_rotates_labels_still_lie_where_they_belong() -> None:
    rotate = Rotated("image", angle=[0.2, 0.1, 0], keep_size=True)
    check_plane(rotate({"image": image_of((20, 18, 16), affine_of((2, 2, 2)))})["image"])


@pytest.mark.parametrize("slices", [1, 9])
def test_a_scan_whose_gantry_was_tilted_keeps_its_own_grid(slices: int) -> None:
    tilted = np.array([[2.0, 0, 0, 3], [0, 2, 1.5, -8], [0, 0, 5, 7], [0, 0, 0, 1]])
    straight = Spacing((3, 3, 5))(image_of((24, 22, slices), tilted))
    assert not torch.allclose(straight.affine[:3, 2] / 5, torch.as_tensor(tilted[:3, 2] / 5))
    check_plane(straight)


def check_plane(image: MetaTensor) -> None:
    """Two classes with a plane between them, through the middle of the scan: linear interpolation keeps it exactly."""
    original, shape = np.asarray(image.meta["original_affine"]), np.asarray(image.meta["spatial_shape"])
    middle = original[:3, :3] @ ((shape - 1) / 2) + original[:3, 3]

    def height(affine: np.ndarray, sides: Sequence[int]) -> np.ndarray:
        return (indices(sides) @ affine[:3, :3].T + affine[:3, 3] - middle) @ [0.5, 0.7, -0.4] + 0.3

    grid = np.asarray(image.affine)
    logits = torch.as_tensor(np.stack([np.zeros(image.shape[1:]), height(grid, image.shape[1:])])).float()
    label = InvertToLabeld("pred", "image")({"image": image, "pred": logits})["pred"]
    np.testing.assert_allclose(label.affine, original)
    assert label.shape[1:] == tuple(shape)
    to_cell = np.linalg.inv(grid) @ original
    place = indices(shape) @ to_cell[:3, :3].T + to_cell[:3, 3]
    above = height(original, shape)
    # Beyond the outermost cells their logits go on.
    counted = ((place >= -1e-6) & (place <= np.array(image.shape[1:]) - 1 + 1e-6)).all(-1) & (np.abs(above) > 1e-3)
    assert counted.mean() > 0.4
    assert 0.1 < (above[counted] > 0).mean() < 0.9
    np.testing.assert_array_equal(np.asarray(label)[0][counted], above[counted] > 0)


def indices(sides: Sequence[int]) -> np.ndarray:
    return np.stack(np.meshgrid(*(np.arange(side) for side in sides), indexing="ij"), axis=-1)
