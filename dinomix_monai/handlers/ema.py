"""The step of the EMA teacher towards the student."""

from __future__ import annotations

from typing import Any

from ignite.engine import Engine, Events

__all__ = ["EMAUpdateHandler"]


class EMAUpdateHandler:
    """
    Updates the trainer's ``ema_teacher`` from its ``network`` after each step.

    Ignite's ``EMAHandler`` is not used, because the buffers that it copies are the student's own and its warm-up
    changes another average than the one it is given.
    """

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to the end of each iteration."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Takes one step of the average."""
        engine.ema_teacher.update(engine.network)
