"""The checkpoint of a run: all that a training needs to go on where it was stopped."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LRScheduler

from dinomix_monai.core.files import set_aside
from dinomix_monai.core.tensor_file import read_tensor_file, write_tensor_file
from dinomix_monai.handlers.schedules import fast_forward_scheduler

__all__ = ["RunStateLoader", "RunStateSaver"]


class RunStateSaver:
    """
    Writes the checkpoint of a run, at its start and after every epoch: one file of plain tensors and numbers.

    The file holds a dictionary with these entries:

    - ``network``: weights and buffers of the student;
    - ``optimizer``: moments and learning rates;
    - ``ema_teacher``: weights of the student's moving average, and the number of its updates;
    - ``scaler``: scale of the gradients, only where they are computed in ``float16`` on a GPU;
    - ``pseudo_labeler``: confidence of each class, and its predicted share of the voxels;
    - ``mix``: PIC's progress, voxels of each class, random state and bank of donors;
    - ``distiller``: the projection heads, without the frozen teacher;
    - ``weightings``: class weights of CPS with DHC, whose trainer has none of the three parts before;
    - ``best_model``: best score, its epoch, and the validations since, see :class:`BestModelHandler`;
    - ``trainer``: ``epoch`` and ``iteration``;
    - ``teacher``: fingerprint of the frozen teacher, ``None`` without one.

    All but the last three are the parts that the trainer has in ``to_save``, under the same names. That is Ignite's
    contract: each part has ``state_dict`` and ``load_state_dict``, and a trainer of your own says in ``to_save`` what
    belongs into the file. Parts that a training does not use have no entry. ``best_model`` comes from ``objects``, to
    which a configuration may add others. The learning rate schedule and the random state of the loaders have no entry,
    because the first follows from the step, and the second from the seed and the epoch.

    The file is replaced in one move, so there is a whole one at every moment. Writing it at the start shows a folder
    that cannot be written to before there is anything to lose, and lets a run that is stopped in its first epoch begin
    that epoch again. If the run does not go on with the state that it finds there, it renames that to ``*.previous.*``.

    Args:
        path: file to write.
        objects: other objects with ``state_dict``, by name; ``None`` entries are skipped.
    """

    def __init__(self, path: str | Path, objects: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.objects = dict(objects or {})

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to the start of the run and the end of each epoch; attach it after all others."""
        engine.add_event_handler(Events.STARTED | Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """
        Writes the file.

        Raises:
            OSError: When the file cannot be written; what was there before is unchanged.
        """
        if engine.state.iteration == 0 and getattr(engine.state, "resumed_from", None) != self.path:
            set_aside(self.path)
        state = {name: part.state_dict() for name, part in _parts_with_state(engine, self.objects).items()}
        state["trainer"] = {"epoch": engine.state.epoch, "iteration": engine.state.iteration}
        state["teacher"] = _teacher_fingerprint(engine)
        write_tensor_file(state, self.path)


class RunStateLoader:
    """
    Restores what :class:`RunStateSaver` wrote, before the first step.

    Args:
        path: file to read.
        objects: the objects that were given to the saver, by the same names.
        lr_scheduler: schedule of learning rates by steps, which is brought to the step at which the run goes on. So a
            run that is made longer, or is given another learning rate, follows its new schedule from there.

    Raises:
        FileNotFoundError: When there is no such file.
    """

    def __init__(
        self,
        path: str | Path,
        objects: Mapping[str, Any] | None = None,
        lr_scheduler: LRScheduler | None = None,
    ) -> None:
        self.path = Path(path)
        self.objects = dict(objects or {})
        self.lr_scheduler = lr_scheduler
        self._has_restored = False
        if not self.path.is_file():
            raise FileNotFoundError(
                f"path must be the state of a run, got {self.path}, which does not exist. Train first."
            )

    def attach(self, engine: Engine) -> None:
        """Attaches the handler to the first start of the engine; attach it before all others."""
        engine.add_event_handler(Events.STARTED, self._restore_once)

    def _restore_once(self, engine: Engine) -> None:
        # Later rounds of a federation start the engine again and must go on from where they are.
        if not self._has_restored:
            self(engine)
            self._has_restored = True

    def __call__(self, engine: Engine) -> None:
        """
        Reads the file and restores the run.

        Raises:
            ValueError: When the file is damaged or lacks a part, or the run had another teacher or other settings.
        """
        # On the CPU, whatever the device: a part moves what it needs, and step counts stay there.
        state = read_tensor_file(self.path, "path", "the state of a run")
        if state.get("teacher") != _teacher_fingerprint(engine):
            raise ValueError(
                f"The run in {self.path} had the teacher {state.get('teacher')}, and now it is "
                f"{_teacher_fingerprint(engine)}. Pass the same teacher_weights and settings of teacher."
            )
        parts = _parts_with_state(engine, self.objects)
        if "scaler" not in state:
            # The run was on a device that needs no scaler; this one finds its scale within a few steps.
            parts.pop("scaler", None)
        needed = ["trainer", *parts]
        if missing := [name for name in needed if name not in state]:
            raise ValueError(
                f"{self.path} must have the state of {', '.join(needed)}, got none of {', '.join(missing)}."
            )
        for name, part in parts.items():
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise ValueError(
                    f"{self.path} must be of a run with the same settings, got another {name}: "
                    f"{_first_difference(error)} Pass what the run was started with, which stands in its logs."
                ) from error
        engine.state.epoch = int(state["trainer"]["epoch"])
        # The step follows from the epochs, so that the next epoch is whole even if its length has been changed.
        length = engine.state.epoch_length
        engine.state.iteration = engine.state.epoch * length if length else state["trainer"]["iteration"]
        engine.state.resumed_from = self.path  # type: ignore[attr-defined]  # Ignite's State takes any attribute
        if self.lr_scheduler is not None:
            fast_forward_scheduler(self.lr_scheduler, engine.state.iteration)
        if engine.state.max_epochs is not None and engine.state.epoch >= engine.state.max_epochs:
            warnings.warn(
                f"The run in {self.path} has all of its {engine.state.max_epochs} epochs: nothing is left to train.",
                stacklevel=2,
            )


def _parts_with_state(engine: Any, objects: Mapping[str, Any]) -> dict[str, Any]:
    return {**engine.to_save, **{name: part for name, part in objects.items() if part is not None}}


def _first_difference(error: Exception) -> str:
    """The first reason why a part does not load; torch lists every tensor that does not fit, of which one is enough."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0] if lines else "nothing fits"
    return reason.rstrip(".") + "."


def _teacher_fingerprint(engine: Engine) -> str | None:
    distiller = getattr(engine, "distiller", None)
    return None if distiller is None else distiller.fingerprint
