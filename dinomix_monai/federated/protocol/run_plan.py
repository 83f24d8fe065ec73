"""The plan of a federated run, which every site gets from the server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["TRANSFERS", "VOXELS", "RunPlan"]

TRANSFERS = ("full", "difference", "half_difference")
"""How a site sends its weights: whole, or what has changed, in single or half precision."""

VOXELS = ("labeled_voxels", "patch_voxels")
"""What a site tells of its labels: numbers for each class, of which the plan has the sums over all sites."""


@dataclass(frozen=True)
class RunPlan:
    """
    What is the same at all sites.

    It travels as plain numbers and text. A site evaluates nothing of it: settings are numbers alone, where a bundle
    would run text that begins with ``$``, and overlays are names of files that the site has itself.

    Args:
        rounds: rounds of the whole run.
        epochs_per_round: local epochs of a round.
        settings: ids of ``train.json`` with other values: numbers, or lists of numbers.
        overlays: configs of the bundle to patch ``train.json`` with, such as ``acdc``.
        transfer: one of :data:`TRANSFERS`.
        proximal_weight: weight of FedProx's term, 0 for none.
        local_norm: whether each site keeps its own normalization layers, as in FedBN.
        labeled_voxels: labeled voxels of each class over all sites, background first; empty before the handshake.
        patch_voxels: likewise those of labeled patches, see :func:`dinomix_monai.data.patch_voxels`.

    Raises:
        ValueError: When an argument is outside its range, or what must be a number is none.
    """

    rounds: int
    epochs_per_round: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    overlays: tuple[str, ...] = ()
    transfer: str = "full"
    proximal_weight: float = 0.0
    local_norm: bool = False
    labeled_voxels: tuple[float, ...] = ()
    patch_voxels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name in ("rounds", "epochs_per_round", "proximal_weight", "local_norm", *VOXELS):
            if not _is_numeric(getattr(self, name)):
                raise ValueError(f"{name} must be made of numbers, got {getattr(self, name)!r}.")
        if self.rounds < 1 or self.epochs_per_round < 1:
            raise ValueError(
                f"rounds and epochs_per_round must be >= 1, got {self.rounds} and {self.epochs_per_round}."
            )
        if self.transfer not in TRANSFERS:
            raise ValueError(f"transfer must be one of {', '.join(TRANSFERS)}, got {self.transfer!r}.")
        if self.proximal_weight < 0:
            raise ValueError(f"proximal_weight must be >= 0, got {self.proximal_weight}.")
        for name, value in self.settings.items():
            if not _is_numeric(value):
                raise ValueError(
                    f"settings must be numbers or lists of numbers, got {value!r} for {name}. "
                    "Text belongs into the settings file of a site."
                )
        for overlay in self.overlays:
            if not re.fullmatch(r"\w+(/\w+)?", overlay):
                raise ValueError(f"overlays must be names of configs of the bundle, such as acdc, got {overlay!r}.")

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return self.rounds * self.epochs_per_round

    def to_message(self) -> dict[str, Any]:
        """Plain numbers, text, lists and dictionaries."""
        content = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> RunPlan:
        """The plan that :meth:`to_message` gave, checked anew."""
        content: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in message.items()}
        return cls(**content)


def _is_numeric(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_numeric(item) for item in value)
    return isinstance(value, (bool, int, float))
