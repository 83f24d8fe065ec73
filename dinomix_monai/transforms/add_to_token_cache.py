"""Adding volumes to a token cache."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.config import KeysCollection
from monai.transforms import MapTransform

from dinomix_monai.core.keys import BatchKeys

__all__ = ["AddToTokenCached"]


class AddToTokenCached(MapTransform):
    """
    Adds a volume to a token cache and writes the name under which the cache knows it; takes one sample.

    The frozen teacher sees the volume later, when its tokens are first asked for.

    The transform is not random, so a ``CacheDataset`` applies it once for each volume. Put it after the last transform
    that changes what the volume looks like, and before padding, which no teacher needs to see.

    Args:
        keys: image; with several, the last one counts.
        token_cache: such as :class:`dinomix_monai.teacher.TokenCache`.
        volume_key: entry to write.
        allow_missing_keys: whether a key may be missing.
    """

    def __init__(
        self,
        keys: KeysCollection,
        token_cache: Any,
        volume_key: str = BatchKeys.VOLUME,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.token_cache, self.volume_key = token_cache, volume_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """
        Args:
            data: sample with a preprocessed volume of shape (C, H, W, D).
        """
        result = dict(data)
        for key in self.key_iterator(result):
            result[self.volume_key] = self.token_cache.add(result[key])
        return result
