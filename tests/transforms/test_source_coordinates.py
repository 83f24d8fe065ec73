from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose, RandFlipd, RandRotate90d, RandSpatialCropd, SpatialPadd

from dinomix_monai.transforms import SourceCoordinatesd

SHAPE = (7, 9, 5)
OBLIQUE = torch.tensor([[-1.4, 0.3, 0, 20], [0.2, 1.9, -0.4, -7], [0.1, 0.5, 2.5, 3], [0, 0, 0, 1]]).double()


class Numbers:
    """Stands for a token cache with three volumes."""

    number = staticmethod({"first": 1, "third": 3}.__getitem__)


def world(shape=SHAPE, affine=OBLIQUE):
    """A volume whose voxels hold their own positions in mm, by the definition of an affine."""
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), axis=-1)
    position = index @ affine[:3, :3].numpy().T + affine[:3, 3].numpy()
    return MetaTensor(torch.from_numpy(position).movedim(-1, 0).float(), affine=affine)


@pytest.mark.parametrize("seed", range(6))
def test_positions_are_those_that_the_voxels_had_in_their_volume(seed):
    chain = Compose(
        [
            RandSpatialCropd("image", (5, 4, 4), random_size=False),
            RandFlipd("image", 0.5, spatial_axis=0),
            RandRotate90d("image", 0.5),
            SourceCoordinatesd("image", Numbers()),
        ]
    ).set_random_state(seed)
    sample = chain({"image": world(), "volume": "third"})
    assert type(sample["source"]) is torch.Tensor
    assert sample["source"].dtype == torch.float32
    assert (sample["source"][0] == 3).all()
    torch.testing.assert_close(sample["source"][1:], sample["image"].as_tensor(), rtol=0, atol=1e-4)


def test_positions_go_on_beyond_the_volume():
    padded = SpatialPadd("image", (9, 9, 5))({"image": world(), "volume": "first"})
    shifted = OBLIQUE.clone()
    shifted[:3, 3] -= OBLIQUE[:3, 0]
    source = SourceCoordinatesd("image", Numbers())(padded)["source"]
    torch.testing.assert_close(source[1:], world((9, 9, 5), shifted).as_tensor(), rtol=0, atol=1e-4)


def test_a_tensor_without_an_affine_is_refused():
    with pytest.raises(TypeError, match="image must be a MetaTensor, whose affine tells where it lies, got Tensor"):
        SourceCoordinatesd("image", Numbers())({"image": torch.zeros(1, 4, 4, 4), "volume": "first"})


def test_a_missing_image_is_passed_over_only_if_allowed():
    assert SourceCoordinatesd("image", Numbers(), allow_missing_keys=True)({"name": "a"}) == {"name": "a"}
    with pytest.raises(KeyError, match="image"):
        SourceCoordinatesd("image", Numbers())({"volume": "first"})
