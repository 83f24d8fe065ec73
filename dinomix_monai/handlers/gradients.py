"""Clipping of the gradient, and the steps that are left out because their gradient is not finite."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from ignite.engine import Engine
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents

from dinomix_monai.core.keys import StepKeys
from dinomix_monai.handlers.bad_step import BadStep

__all__ = ["ClipGradientHandler"]


_MAX_SAVED_BATCHES = 10
# The run is taken to be lost after this number of bad steps in a row.
_MAX_BAD_STEPS_IN_A_ROW = 10


class ClipGradientHandler:
    """
    Scales the gradient of the optimizer's parameters to a largest norm, and leaves out steps that are not finite.

    The output of the step has the norm before that as ``gradient_norm``.

    Where the loss is NaN or infinite, so is its gradient; the norm of the gradient therefore shows both. Reading the
    norm waits for a GPU once in each step, as the gradient scaler of ``float16`` does anyway.

    A step that is not finite changes no parameter and no running mean. A warning names its terms of the loss and its
    cases, and its batch is saved. In ``float16`` the gradient alone overflows now and then, because the scaler finds
    its scale that way. The scaler leaves such a step out by itself, without a warning. Processes that train together
    have the same losses and gradients, so all of them leave out the same steps, and each names its own cases.

    Args:
        max_norm: largest norm over all parameters.
        on_bad_loss: {``"skip"``, ``"stop"``} go on with the next step, or end the run. Ten bad steps in a row end the
            run in any case.
        folder: folder for the batches of bad steps, of which the first ten are kept; ``None`` to keep none.

    Raises:
        ValueError: When ``max_norm`` is not positive, or ``on_bad_loss`` not one of the above.
    """

    def __init__(
        self, max_norm: float, on_bad_loss: Literal["skip", "stop"] = "skip", folder: str | Path | None = None
    ) -> None:
        if not max_norm > 0:
            raise ValueError(f"max_norm must be > 0, got {max_norm}.")
        if on_bad_loss not in ("skip", "stop"):
            raise ValueError(f"on_bad_loss must be 'skip' or 'stop', got {on_bad_loss!r}.")
        self.max_norm, self.on_bad_loss, self.folder = max_norm, on_bad_loss, folder
        self.logger = logging.getLogger(__name__)
        self._saved_batches = 0
        self._bad_steps_in_a_row = 0

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to the end of the backward pass."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: SupervisedTrainer) -> None:
        """
        Clips the gradients.

        Raises:
            FloatingPointError: When the step is not finite, and ``on_bad_loss`` is ``"stop"`` or the steps before it
                were not finite either.
        """
        # Without CUDA, mixed precision may have a scaler that is disabled.
        scaler = engine.scaler if engine.amp and engine.scaler is not None and engine.scaler.is_enabled() else None
        if scaler is not None:
            scaler.unscale_(engine.optimizer)
        parameters = [p for group in engine.optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_norm)
        engine.state.output[StepKeys.GRADIENT_NORM] = norm
        if torch.isfinite(norm):
            self._bad_steps_in_a_row = 0
            return
        step = BadStep(engine)
        if scaler is None:
            engine.optimizer.zero_grad(set_to_none=True)
        elif not step.non_finite_terms:
            return
        self._leave_out(engine, step)

    def _leave_out(self, engine: SupervisedTrainer, step: BadStep) -> None:
        _restore_buffers(engine)
        self._bad_steps_in_a_row += 1
        text = f"Step {step.iteration} is left out: {step.describe()}."
        if self.folder is not None and self._saved_batches < _MAX_SAVED_BATCHES:
            self._saved_batches += 1
            text += f" Its batch is in {step.save(self.folder)}."
        if self.on_bad_loss == "stop":
            raise FloatingPointError(f"{text} With on_bad_loss 'skip', training goes on.")
        if self._bad_steps_in_a_row == _MAX_BAD_STEPS_IN_A_ROW:
            before = _MAX_BAD_STEPS_IN_A_ROW - 1
            raise FloatingPointError(f"{text} So were the {before} before it: try a lower learning_rate.")
        self.logger.warning(text)


def _restore_buffers(engine: SupervisedTrainer) -> None:
    # The running means of batch normalization have seen the step already; those of the EMA teacher have not.
    teacher = getattr(engine, "ema_teacher", None)
    if teacher is not None:
        before = dict(teacher.module.named_buffers())
        for name, buffer in engine.network.named_buffers():
            if not buffer.isfinite().all():
                buffer.copy_(before[name])
