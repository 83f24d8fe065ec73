"""FedProx: sites that train on different data do not drift apart too far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines.utils import IterationEvents

__all__ = ["ProximalHandler"]


class ProximalHandler:
    """
    Adds the gradient of ``weight / 2 * |w - w_global|^2`` over the parameters of the trainer's network.

    Attach it before what clips gradients. Where gradients are scaled (mixed precision in ``float16``) so is the term.

    Reference: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020,
    https://arxiv.org/abs/1812.06127.

    Args:
        weight: weight of the term.

    Attributes:
        anchor: the global weights by name; until they are set there is no term.

    Raises:
        ValueError: When ``weight`` is not positive.
    """

    def __init__(self, weight: float) -> None:
        if not weight > 0:
            raise ValueError(f"weight must be > 0, got {weight}.")
        self.weight = weight
        self.anchor: Mapping[str, torch.Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Attaches to the end of the backward pass."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Any) -> None:
        """Adds the term to the gradients that there are."""
        scale = engine.scaler.get_scale() if engine.amp and engine.scaler is not None else 1.0
        for name, parameter in engine.network.named_parameters():
            if parameter.grad is not None and name in self.anchor:
                anchor = self.anchor[name].to(parameter)
                parameter.grad.add_(parameter - anchor, alpha=self.weight * scale)
