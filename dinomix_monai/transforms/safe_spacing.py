"""Resampling beside entries that are no metadata."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from monai.transforms import Spacingd

__all__ = ["SafeSpacingD", "SafeSpacingDict", "SafeSpacingd"]


class SafeSpacingd(Spacingd):
    """
    ``monai.transforms.Spacingd`` that leaves other entries of a sample alone; takes one sample.

    Since 1.6.0 MONAI's takes every entry whose name begins with that of the image and an underscore for a dictionary of
    metadata. It fails on MONAI Label's ``image_path``, a string by which the writer of the result chooses its format.

    Args:
        *args: see ``monai.transforms.Spacingd``.
        **kwargs: likewise.
    """

    def __call__(self, data: Mapping[Hashable, Any], lazy: bool | None = None) -> dict[Hashable, Any]:
        """Resamples; what is neither one of the keys nor a dictionary is passed through."""
        names = tuple(f"{key}_" for key in self.keys)
        others = {
            key: value
            for key, value in data.items()
            if key not in self.keys and str(key).startswith(names) and not isinstance(value, dict)
        }
        seen = {key: value for key, value in data.items() if key not in others}
        return {**super().__call__(seen, lazy=lazy), **others}


SafeSpacingD = SafeSpacingDict = SafeSpacingd
