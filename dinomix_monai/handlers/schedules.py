"""Schedules: the values of the trainer's attributes at each step."""

from __future__ import annotations

import math
import warnings
from typing import Any

from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["CurriculumHandler", "RampUpHandler", "fast_forward_scheduler"]


class CurriculumHandler:
    """
    Sets ``engine.progress`` and the progress of PIC before each step: steps done / steps planned, at most 1.

    The number of planned epochs is an argument and is not read from ``engine.state.max_epochs``, which in a federation
    is the end of the present round.

    Args:
        total_epochs: epochs of the whole run.
        transform: object with a ``progress`` of its own, such as :class:`dinomix_monai.transforms.PICCutMixd`, or
            ``None``.

    Raises:
        ValueError: When ``total_epochs`` is less than 1.
    """

    def __init__(self, total_epochs: int, transform: Any = None) -> None:
        if total_epochs < 1:
            raise ValueError(f"total_epochs must be >= 1, got {total_epochs}.")
        self.total_epochs = total_epochs
        self.transform = transform

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to the start of each iteration."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Any) -> None:
        """Sets the progress."""
        done = engine.state.iteration - 1
        engine.progress = min(done / (self.total_epochs * engine.state.epoch_length), 1.0)
        if self.transform is not None:
            self.transform.progress = engine.progress


class RampUpHandler:
    """
    Sets a weight of the trainer before each step: 0 during the warm-up, then ``value * exp(-5 (1 - u)^2)``.

    ``u = min((progress - warm_up) / ramp_up, 1)`` with the trainer's progress; attach it after
    :class:`CurriculumHandler`.

    Reference: Laine and Aila, "Temporal ensembling for semi-supervised learning", ICLR 2017,
    https://arxiv.org/abs/1610.02242.

    Args:
        attribute: name of the trainer's attribute.
        value: weight after the ramp.
        warm_up: share of the run at weight 0.
        ramp_up: share of the run that the ramp takes after the warm-up; 0 to set the full weight at once.

    Raises:
        ValueError: When ``warm_up`` or ``ramp_up`` is not in [0, 1], or when the handler is attached to an engine
            without the attribute.
    """

    def __init__(self, attribute: str, value: float, warm_up: float = 0.0, ramp_up: float = 0.0) -> None:
        if not 0 <= warm_up <= 1 or not 0 <= ramp_up <= 1:
            raise ValueError(f"warm_up and ramp_up must be shares of the run in [0, 1], got {warm_up} and {ramp_up}.")
        self.attribute = attribute
        self.value = value
        self.warm_up = warm_up
        self.ramp_up = ramp_up

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to the start of each iteration."""
        if not hasattr(engine, self.attribute):
            raise ValueError(f"attribute must name an attribute of {type(engine).__name__}, got {self.attribute!r}.")
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def weight(self, progress: float) -> float:
        """The weight at a progress in [0, 1]."""
        if progress < self.warm_up:
            return 0.0
        u = min((progress - self.warm_up) / self.ramp_up, 1.0) if self.ramp_up else 1.0
        return self.value * math.exp(-5 * (1 - u) ** 2)

    def __call__(self, engine: Any) -> None:
        """Sets the weight."""
        setattr(engine, self.attribute, self.weight(engine.progress))


def fast_forward_scheduler(scheduler: LRScheduler, steps: int) -> None:
    """
    Sets the learning rates to those that a schedule gives after a number of steps, whatever they are now.

    Args:
        scheduler: a schedule whose rates follow from the step alone, and not from a metric.
        steps: number of steps since the beginning of the run.
    """
    for group, rate in zip(scheduler.optimizer.param_groups, scheduler.base_lrs):
        group["lr"] = rate
    scheduler.last_epoch = 0
    with warnings.catch_warnings():
        # PyTorch warns that the optimizer has made no step before the scheduler, which is the point here.
        warnings.simplefilter("ignore")
        for _ in range(steps):
            scheduler.step()
