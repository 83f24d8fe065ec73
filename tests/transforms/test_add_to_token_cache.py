from __future__ import annotations

import torch
from monai.data import CacheDataset
from monai.transforms import Compose, RandFlipd

from dinomix_monai.transforms import AddToTokenCached


class Cache:
    """Names volumes by the order in which it gets them."""

    def __init__(self):
        self.volumes = []

    def add(self, volume):
        self.volumes.append(volume)
        return f"volume {len(self.volumes)}"


def test_the_name_of_the_volume_is_written():
    cache, volume = Cache(), torch.rand(1, 4, 4, 4)
    sample = {"image": volume, "name": "a"}
    assert AddToTokenCached("image", cache)(sample) == {**sample, "volume": "volume 1"}
    assert AddToTokenCached("image", cache, volume_key="name")({"image": volume})["name"] == "volume 2"
    assert cache.volumes == [volume, volume]


def test_each_volume_of_a_cached_data_set_is_entered_once():
    cache = Cache()
    transform = Compose([AddToTokenCached("image", cache), RandFlipd("image", 0.5)])
    dataset = CacheDataset([{"image": torch.rand(1, 4, 4, 4)} for _ in range(3)], transform, progress=False)
    for _ in range(2):
        assert [sample["volume"] for sample in dataset] == ["volume 1", "volume 2", "volume 3"]
    assert len(cache.volumes) == 3
