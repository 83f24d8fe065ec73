"""What a site decides for itself: where its data lie, and on which device it trains."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dinomix_monai.bundle import Bundle
from dinomix_monai.data import split_dataset

__all__ = ["SiteSettings", "phantom_site"]


@dataclass(frozen=True)
class SiteSettings:
    """
    What a site decides for itself.

    Args:
        name: the site's name.
        folder: where the site keeps its state, models and token cache.
        bundle: the bundle.
        overrides: the site's own values for ids of ``train.json``, such as ``dataset_dir``, ``device`` or
            ``teacher_weights``. They have the last word over the settings that the server sends.
    """

    name: str
    folder: Path
    bundle: Bundle
    overrides: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(
        cls, name: str, folder: str | Path, file: str | Path | None = None, dataset_dir: str | Path | None = None
    ) -> SiteSettings:
        """
        Reads the settings from a JSON file of the site.

        Args:
            name: the site's name.
            folder: where the site keeps its state, unless the file names another ``folder``.
            file: JSON object with ``overrides`` by id; ``bundle_root`` and ``folder`` may be among them. ``None`` if
                the site has no such file.
            dataset_dir: folder of the site's data set, unless the file names another one.

        Raises:
            FileNotFoundError: When the file or the bundle does not exist.
            ValueError: When the file is no JSON, or no object.
        """
        overrides: dict[str, Any] = {}
        if file is not None:
            path = Path(file).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"settings_file must be a JSON file of the site, got {path}, which is none.")
            try:
                overrides = json.loads(path.read_bytes())
            except ValueError as error:  # also of bytes that are no text
                raise ValueError(f"{path} must be JSON of a site's settings, got what is none: {error}.") from error
            if not isinstance(overrides, dict):
                raise ValueError(f"{path} must hold an object of settings by id, got a {type(overrides).__name__}.")
        if dataset_dir is not None:
            overrides.setdefault("dataset_dir", str(Path(dataset_dir).expanduser()))
        bundle = Bundle.find(overrides.pop("bundle_root", None))
        return cls(name, Path(overrides.pop("folder", folder)).expanduser().absolute(), bundle, overrides)


def phantom_site(name: str, bundle_root: Path, sites: int, unlabeled_sites: int = 0) -> dict[str, Any]:
    """
    Gives a site its share of the built-in phantom, which is made if it is not there.

    Args:
        name: the site's name, which ends in the number of its share, counted from 1.
        bundle_root: folder of the bundle.
        sites: number of shares.
        unlabeled_sites: how many of the shares have no labels; these are the last ones.

    Returns:
        The share as overrides of :class:`SiteSettings`.

    Raises:
        ValueError: When the name does not end in the number of a share.
    """
    number = re.search(r"(\d+)$", name)
    if number is None or not 1 <= int(number[1]) <= sites:
        raise ValueError(f"name must end in the number of one of {sites} sites, as site-1, got {name!r}.")
    folder = bundle_root / "data" / "phantom"
    paths = split_dataset(folder, sites, unlabeled_sites, phantom_dir=folder)
    return {"dataset_dir": str(folder), "datalist#file": paths[int(number[1]) - 1].name}
