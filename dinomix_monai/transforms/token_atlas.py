"""Entering volumes into a token atlas."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from dinomix_monai.core.keys import BatchKeys

__all__ = ["TokenAtlasD", "TokenAtlasDict", "TokenAtlasd"]


class TokenAtlasd(MapTransform):
    """
    Has an atlas compute the tokens of a volume, unless it has them, and writes the volume's number; takes one sample.

    It is not random, so a ``CacheDataset`` does it once for each volume. Put it after the last transform that changes
    what the volume looks like, and before padding, which no teacher needs to see.

    Args:
        keys: image; with several, the last one counts.
        atlas: such as :class:`dinomix_monai.teacher.TokenAtlas`.
        volume_key: entry to write.
        allow_missing_keys: whether a key may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        atlas: Any,
        volume_key: str = BatchKeys.VOLUME,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.atlas, self.volume_key = atlas, volume_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with a preprocessed volume of shape (1, H, W, D).
        """
        result = dict(data)
        for key in self.key_iterator(result):
            result[self.volume_key] = self.atlas.add(result[key])
        return result


TokenAtlasD = TokenAtlasDict = TokenAtlasd
