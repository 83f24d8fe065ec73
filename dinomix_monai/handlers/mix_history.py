"""The history of what PIC pastes in each epoch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ignite.engine import Engine, Events

from dinomix_monai.core.epoch_table import EpochTable
from dinomix_monai.transforms import PICCutMixd

__all__ = ["MixHistoryHandler"]


class MixHistoryHandler:
    """
    Writes ``mix.csv``: for each epoch, origin of donors and class, the probability to be pasted and the voxels.

    The voxels of a class are those that PIC counts: in labeled donors those of the ground truth of all labeled cases,
    in unlabeled donors the moving average of those of confident pseudo-labels.

    Args:
        path: file to write.
        mix: the transform that pastes.
        class_names: names by label value, background first.
    """

    def __init__(self, path: str | Path, mix: PICCutMixd, class_names: Sequence[str]) -> None:
        self.table = EpochTable(path, ("epoch", "origin", "class", "probability", "voxels"))
        self.class_curriculum = mix.mixer.class_curriculum
        self.class_names = list(class_names)

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to the start of a run and to the end of each epoch."""
        engine.add_event_handler(Events.STARTED, lambda engine: self.table.start(engine.state.epoch))
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Writes the rows of the epoch."""
        curriculum = self.class_curriculum
        for origin, counts in (("labeled", curriculum.labeled_counts), ("unlabeled", curriculum.unlabeled_counts)):
            values = zip(self.class_names[1:], curriculum.probabilities(origin == "labeled"), counts[1:])
            self.table.add(
                {
                    **{"epoch": engine.state.epoch, "origin": origin, "class": name},
                    **{"probability": f"{probability:.5f}", "voxels": f"{count:.6g}"},
                }
                for name, probability, count in values
            )
