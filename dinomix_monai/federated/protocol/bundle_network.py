"""The model that is federated: the bundle's ``network_def``, and nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from torch import nn

import dinomix_monai

__all__ = ["bundle_network", "config_files", "find_bundle"]


def find_bundle(bundle_root: str | Path | None = None) -> Path:
    """
    The folder of the bundle: the one that is named, or else the one beside the package.

    Raises:
        FileNotFoundError: When there is no bundle.
    """
    root = Path(dinomix_monai.__file__).parents[1] / "bundle" if bundle_root is None else Path(bundle_root)
    root = root.expanduser().absolute()
    if not (root / "configs" / "train.json").is_file():
        raise FileNotFoundError(
            f"bundle_root must be the bundle's folder, got {root}, which has no configs/train.json. Install the "
            "package from its repository (pip install -e .), or name bundle_root in the site's settings file."
        )
    return root


def config_files(bundle_root: Path, overlays: Sequence[str] = ()) -> list[str]:
    """
    ``train.json`` of a bundle and its overlays.

    Raises:
        FileNotFoundError: When the bundle has no such overlay.
    """
    files = [bundle_root / "configs" / f"{name}.json" for name in ("train", *overlays)]
    if missing := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(f"overlays must name configs of the bundle, got {missing[0]}, which does not exist.")
    return [str(file) for file in files]


def bundle_network(
    num_classes: int,
    overlays: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
    bundle_root: str | Path | None = None,
    seed: int = 0,
) -> nn.Module:
    """
    The network that the sites will train, with its initial weights; leaves the global random state alone.

    Args:
        num_classes: number of classes, background included.
        overlays: configs that patch ``train.json``.
        settings: ids with other values.
        bundle_root: folder of the bundle, see :func:`find_bundle`.
        seed: seed of the initial weights.
    """
    parser = ConfigParser()
    parser.read_config(config_files(find_bundle(bundle_root), overlays))
    parser.update({**(settings or {}), "num_classes": num_classes})
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return parser.get_parsed_content("network_def")
