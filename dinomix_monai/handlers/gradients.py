"""Gradients are bounded before the optimizer sees them."""

from __future__ import annotations

import logging

import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents

__all__ = ["ClipGradientHandler"]


class ClipGradientHandler:
    """
    Scales the gradient of the optimizer's parameters to a largest norm.

    A step whose gradient is not finite is left out: no parameter changes. With mixed precision the gradient scaler does
    that by itself, without a warning, because it finds its scale that way.

    Args:
        max_norm: largest norm over all parameters.

    Raises:
        ValueError: When ``max_norm`` is not positive.
    """

    def __init__(self, max_norm: float) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be > 0, got {max_norm}.")
        self.max_norm = max_norm
        self.logger = logging.getLogger(__name__)

    def attach(self, engine: Engine) -> None:
        """Attaches to the end of the backward pass."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        """Clips the gradients."""
        # On a CPU there is a scaler with mixed precision, too, but it is disabled.
        scaler = engine.scaler if engine.amp and engine.scaler is not None and engine.scaler.is_enabled() else None
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        parameters = [p for group in engine.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        if scaler is None and not torch.isfinite(norm):
            self.logger.warning("Step %d is left out: its gradient is not finite.", engine.state.iteration)
            engine.optimizer.zero_grad(set_to_none=True)
