"""The end of a training that brings nothing new."""

from __future__ import annotations

from ignite.engine import Engine, Events

from dinomix_monai.handlers.checkpoint import BestModelHandler

__all__ = ["PatienceHandler"]


class PatienceHandler:
    """
    Ends the training when validation has found no better model for some times in a row.

    How often that is, the handler of the best model knows, whose state a resumed run goes on with; this one has none.
    MONAI's ``EarlyStopHandler`` is attached to the validator and given the trainer, which no configuration can do,
    since the trainer is given the validator.

    Args:
        best_model: the handler that writes the best model.
        patience: validations to wait for a better one; ``None`` for ever.

    Raises:
        ValueError: When ``patience`` is less than 1.
    """

    def __init__(self, best_model: BestModelHandler, patience: int | None = None) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be >= 1 or None, got {patience}.")
        self.best_model = best_model
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        """Attaches to each end of an epoch and to the start of the training; attach it after loader and validation."""
        if self.patience is not None:
            engine.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Ends the run, also one that is resumed after its patience was over."""
        if self.patience is not None and self.best_model.waited >= self.patience:
            engine.terminate()
