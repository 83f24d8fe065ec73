"""FedProx, which keeps sites that train on different data from drifting apart."""

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

    Attach this handler before one that clips gradients. If gradients are scaled (mixed precision in ``float16``), the
    term is scaled, too. Parameters without a gradient are left alone.

    NVFlare's ``PTFedProxLoss`` (2.9) does not serve: it is a loss of two modules, but the trainer's loss functions get
    logits and labels and no module, and a training with ``federated.json`` must also run where NVFlare is not
    installed.

    Reference: Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020,
    https://arxiv.org/abs/1812.06127.

    Args:
        weight: weight of the term, FedProx's mu.

    Attributes:
        anchor: weights of the global model by name, which a round begins with; while it is empty there is no term.

    Raises:
        ValueError: When ``weight`` is not positive.
    """

    def __init__(self, weight: float) -> None:
        if not weight > 0:
            raise ValueError(f"weight must be > 0, got {weight}.")
        self.weight = weight
        self.anchor: Mapping[str, torch.Tensor] = {}

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to the end of the backward pass."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    @torch.no_grad()
    def __call__(self, engine: Any) -> None:
        """Adds the gradient of the term to the gradients of the step."""
        scale = engine.scaler.get_scale() if engine.amp and engine.scaler is not None else 1.0
        for name, parameter in engine.network.named_parameters():
            if parameter.grad is not None and name in self.anchor:
                anchor = self.anchor[name].to(parameter)
                parameter.grad.add_(parameter - anchor, alpha=self.weight * scale)
