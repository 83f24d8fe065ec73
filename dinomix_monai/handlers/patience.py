"""The early end of a training whose validation finds no better model."""

from __future__ import annotations

from ignite.engine import Engine, Events

from dinomix_monai.handlers.best_model import BestModelHandler

__all__ = ["PatienceHandler"]


class PatienceHandler:
    """
    Ends the training when validation has found no better model for a number of times in a row.

    This handler has no state. The handler of the best model counts the validations, and a resumed run goes on with its
    count. MONAI's ``EarlyStopHandler`` does not fit into a configuration: it is attached to the validator and takes the
    trainer, while the trainer takes the validator.

    Args:
        best_model: the handler that writes the best model.
        patience: number of validations to wait for a better model; ``None`` to wait for ever.

    Raises:
        ValueError: When ``patience`` is less than 1.
    """

    def __init__(self, best_model: BestModelHandler, patience: int | None = None) -> None:
        if patience is not None and patience < 1:
            raise ValueError(f"patience must be >= 1 or None, got {patience}.")
        self.best_model = best_model
        self.patience = patience

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to start and epochs of the training; attach it after the loader and the validation."""
        if self.patience is not None:
            engine.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Ends the training, also when it was resumed after its patience was over."""
        if self.patience is not None and self.best_model.waited >= self.patience:
            engine.terminate()
