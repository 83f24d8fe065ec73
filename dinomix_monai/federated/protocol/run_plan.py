"""The plan of a federated run, which the server sends to every site with each task."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from dinomix_monai.federated.protocol.messages import UpdateForm
from dinomix_monai.federated.protocol.site_description import VOXEL_COUNTS

__all__ = ["RunPlan"]

_NUMBERS = ("rounds", "epochs_per_round", "proximal_weight", "local_norm", "unlabeled_learning_rate")


@dataclass(frozen=True)
class RunPlan:
    """
    What is the same at all sites of a run.

    The plan travels as plain numbers and text, and a site evaluates nothing of it: ``settings`` are numbers alone,
    where a bundle would run text that begins with ``$``, and ``overlays`` are names of files that the site has itself.
    Both sides check a plan when they make it, so a site refuses what the server should not have sent.

    Args:
        rounds: rounds of the whole run.
        epochs_per_round: epochs that a site trains in a round.
        settings: values for ids of ``train.json``, each a number or a list of numbers.
        overlays: names of the bundle's configs that patch ``train.json``, such as ``acdc``.
        transfer: one of :class:`UpdateForm`.
        proximal_weight: weight of FedProx's term, 0 for none.
        local_norm: whether each site keeps its own normalization layers, as in FedBN.
        unlabeled_learning_rate: share of the learning rate at which sites without labels learn.
        labeled_voxels: labeled voxels of each class summed over all sites, background first; empty in the handshake.
        patch_voxels: ``patch_voxels`` of :class:`SiteDescription` over all sites; empty in the handshake.
        class_names: names of the model's classes, background first, of which each site has its share; empty where all
            sites have the same classes.

    Raises:
        ValueError: When an argument is outside of its range, or something that must be a number is not one.

    Example:
        >>> plan = RunPlan(rounds=4, epochs_per_round=2, settings={"steps_per_epoch": 25})
        >>> plan.epochs
        8
        >>> RunPlan.from_message(plan.to_message()) == plan
        True
    """

    rounds: int
    epochs_per_round: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    overlays: tuple[str, ...] = ()
    transfer: str = UpdateForm.FULL.value
    proximal_weight: float = 0.0
    local_norm: bool = False
    unlabeled_learning_rate: float = 0.5
    labeled_voxels: tuple[float, ...] = ()
    patch_voxels: tuple[float, ...] = ()
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in (*_NUMBERS, *VOXEL_COUNTS):
            if not _is_made_of_numbers(getattr(self, name)):
                raise ValueError(f"{name} must be made of numbers, got {getattr(self, name)!r}.")
        if self.rounds < 1 or self.epochs_per_round < 1:
            raise ValueError(
                f"rounds and epochs_per_round must be >= 1, got {self.rounds} and {self.epochs_per_round}."
            )
        if self.transfer not in tuple(UpdateForm):
            raise ValueError(f"transfer must be one of {', '.join(UpdateForm)}, got {self.transfer!r}.")
        if self.proximal_weight < 0:
            raise ValueError(f"proximal_weight must be >= 0, got {self.proximal_weight}.")
        if self.unlabeled_learning_rate <= 0:
            raise ValueError(f"unlabeled_learning_rate must be > 0, got {self.unlabeled_learning_rate}.")
        for name, value in self.settings.items():
            if not _is_made_of_numbers(value):
                raise ValueError(
                    f"settings must be numbers or lists of numbers, got {value!r} for {name}. "
                    "Text belongs into the settings file of a site."
                )
        if not all(isinstance(name, str) for name in self.class_names):
            raise ValueError(f"class_names must be text, got {self.class_names!r}.")
        for overlay in self.overlays:
            if not re.fullmatch(r"\w+(/\w+)?", overlay):
                raise ValueError(f"overlays must be names of configs of the bundle, such as acdc, got {overlay!r}.")

    @property
    def epochs(self) -> int:
        """Epochs that a site trains in the whole run."""
        return self.rounds * self.epochs_per_round

    def to_message(self) -> dict[str, Any]:
        """The plan as numbers, text, lists and dictionaries, which NVFlare can send."""
        content = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in content.items()}

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> RunPlan:
        """
        Makes the plan again from what :meth:`to_message` returned, and checks it anew.

        Raises:
            ValueError: As :class:`RunPlan` itself.
        """
        content: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in message.items()}
        return cls(**content)


def _is_made_of_numbers(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_made_of_numbers(item) for item in value)
    return isinstance(value, (bool, int, float))
