"""Gradients are bounded before the optimizer sees them."""

from __future__ import annotations

import logging

import torch
from ignite.engine import Engine, Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from torch import distributed, nn

from dinomix_monai.processes import process_count, sum_over_processes

__all__ = ["AverageGradientHandler", "ClipGradientHandler"]


class AverageGradientHandler:
    """
    Averages the gradients of a module over all processes, as ``DistributedDataParallel`` does for what it wraps.

    For modules that train beside the network and not in its forward pass, such as projection heads. At the start of
    a run their weights become those of rank 0. It does nothing in a run of one process.

    Args:
        module: what is trained; of a parameter, either all processes or none must have a gradient.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def attach(self, engine: Engine) -> None:
        """Attaches to the start and to the end of each backward pass; attach it before any use of the gradients."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def start(self, engine: Engine) -> None:
        """Takes the weights of rank 0."""
        if process_count() > 1:
            for parameter in self.module.parameters():
                distributed.broadcast(parameter.detach(), 0)

    def __call__(self, engine: Engine) -> None:
        """Averages the gradients."""
        if process_count() > 1:
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    parameter.grad = sum_over_processes(parameter.grad) / process_count()


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
