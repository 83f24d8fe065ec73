"""The model that is federated: the bundle's ``network_def``, and nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dinomix_monai.bundle import Bundle

__all__ = ["bundle_network", "class_axes"]


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
        settings: ids with other values; ``num_channels`` of images with several.
        bundle_root: folder of the bundle, see :meth:`dinomix_monai.bundle.Bundle.find`.
        seed: seed of the initial weights.

    Raises:
        FileNotFoundError: When there is no bundle or no such overlay.
        ValueError: When nothing refers to one of the settings.
    """
    # What the data set of a site says, which there is none of here.
    given = {"num_channels": 1, **(settings or {}), "num_classes": num_classes}
    parser = Bundle.find(bundle_root).parser("train", *overlays, **given)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return parser.get_parsed_content("network_def")


def class_axes(
    num_classes: int, overlays: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> dict[str, int]:
    """
    Finds the weights of the network that have a part for each class, by what one class more would change.

    Args:
        num_classes: as for :func:`bundle_network`.
        overlays: as for :func:`bundle_network`.
        settings: as for :func:`bundle_network`.

    Returns:
        The axis of the classes by the name of the weight.
    """
    one, other = (bundle_network(n, overlays, settings).state_dict() for n in (num_classes, num_classes + 1))
    differing = {name: np.not_equal(value.shape, other[name].shape) for name, value in one.items()}
    return {name: int(axis.argmax()) for name, axis in differing.items() if axis.any()}
