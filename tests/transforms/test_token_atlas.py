from __future__ import annotations

import torch
from monai.data import CacheDataset
from monai.transforms import Compose, RandFlipd

from dinomix_monai.transforms import TokenAtlasd


class Atlas:
    """Numbers volumes in the order in which it gets them."""

    def __init__(self):
        self.volumes = []

    def add(self, volume):
        self.volumes.append(volume)
        return len(self.volumes)


def test_the_number_of_the_volume_is_written():
    atlas, volume = Atlas(), torch.rand(1, 4, 4, 4)
    assert TokenAtlasd("image", atlas)({"image": volume, "name": "a"}) == {"image": volume, "name": "a", "volume": 1}
    assert TokenAtlasd("image", atlas, volume_key="number")({"image": volume})["number"] == 2
    assert atlas.volumes == [volume, volume]


def test_each_volume_of_a_cached_data_set_is_entered_once():
    atlas = Atlas()
    transform = Compose([TokenAtlasd("image", atlas), RandFlipd("image", 0.5)])
    dataset = CacheDataset([{"image": torch.rand(1, 4, 4, 4)} for _ in range(3)], transform, progress=False)
    for _ in range(2):
        assert [sample["volume"] for sample in dataset] == [1, 2, 3]
    assert len(atlas.volumes) == 3
