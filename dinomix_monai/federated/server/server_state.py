"""What a server keeps beside the global model, so that another one can go on where it ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

__all__ = ["SERVER_STATE", "ServerState"]

Weights = Mapping[str, np.ndarray]

SERVER_STATE = "server_state"
"""Name of its entry in the file of the global model."""


@dataclass
class ServerState:
    """
    What a server keeps beside the global model, in the same file and in no message to a site.

    Args:
        epochs_per_round: epochs that a site trains in a round.
        best_metric: mean validation Dice of the best global model; ``None`` before there is one.
        best_weights: its weights by name.
        velocity: what the momentum of the server's optimizer has gathered, by the name of the weight.
    """

    epochs_per_round: int
    best_metric: float | None = None
    best_weights: Weights = field(default_factory=dict)
    velocity: Weights = field(default_factory=dict)

    def to_file(self) -> dict[str, Any]:
        """What is written: numbers and tensors, which are read without running code."""
        return {
            "epochs_per_round": self.epochs_per_round,
            "best_metric": self.best_metric,
            "best_weights": _tensors(self.best_weights),
            "velocity": _tensors(self.velocity),
        }

    @classmethod
    def from_file(cls, content: Mapping[str, Any]) -> ServerState:
        """The state that :meth:`to_file` has made this of."""
        return cls(
            content["epochs_per_round"],
            content["best_metric"],
            _arrays(content["best_weights"]),
            _arrays(content["velocity"]),
        )


def _tensors(weights: Weights) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(value) for name, value in weights.items()}


def _arrays(weights: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: value.cpu().numpy() for name, value in weights.items()}
