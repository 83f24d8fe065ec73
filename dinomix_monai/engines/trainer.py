"""The semi-supervised trainer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys as Keys

from dinomix_monai.engines.feature_distiller import FeatureDistiller
from dinomix_monai.engines.pseudo_labeler import PseudoLabeler
from dinomix_monai.keys import BatchKeys, LossKeys
from dinomix_monai.networks import EMATeacher
from dinomix_monai.transforms import PICCutMixd

__all__ = ["DinoMixTrainer"]


class DinoMixTrainer(SupervisedTrainer):
    """
    ``monai.engines.SupervisedTrainer`` that also learns from unlabeled images and from a frozen teacher.

    One step: the EMA teacher labels the weak view of the unlabeled patches; PIC mixes labeled and unlabeled ones; the
    student sees the clean labeled and the mixed patches in one forward pass; the loss is ``supervised +
    unsupervised_weight * unsupervised + distillation_weight * distillation``. Where a weight is 0 its part is not
    computed at all, and with both at 0 a step is exactly ``SupervisedTrainer``'s.

    It owns no schedule and no file: handlers set ``unsupervised_weight``, ``distillation_weight`` and ``progress``,
    update the EMA teacher and write checkpoints.

    Args:
        unlabeled_data_loader: batches with ``image`` (weak view) and, if there is one, ``strong``; ``None`` or empty
            for supervised training.
        ema_teacher: gives the pseudo-labels; needed when there are unlabeled images.
        pseudo_labeler: turns its logits into labels and weights; needed likewise.
        mix: transform of the batch of labeled and unlabeled patches into the mixed ones; ``None`` to learn from the
            unlabeled patches as they are.
        unlabeled_loss_function: called with logits, labels and weights of the mixed patches; needed when there are
            unlabeled images.
        distiller: feature distillation, or ``None``.
        teacher_key: what the frozen teacher looks at: ``image`` for the student's own input, or another entry of both
            kinds of batches, which must then be among the keys of ``mix``.
        unsupervised_weight: weight of the mixed patches' loss.
        distillation_weight: weight of the distillation loss.
        **kwargs: see ``SupervisedTrainer``; ``accumulation_steps`` must stay 1.

    Raises:
        ValueError: When a part is missing that the unlabeled images need, or ``accumulation_steps`` is not 1.
    """

    def __init__(
        self,
        *args: Any,
        unlabeled_data_loader: Iterable | None = None,
        ema_teacher: EMATeacher | None = None,
        pseudo_labeler: PseudoLabeler | None = None,
        mix: PICCutMixd | None = None,
        unlabeled_loss_function: Callable | None = None,
        distiller: FeatureDistiller | None = None,
        teacher_key: str = BatchKeys.IMAGE,
        unsupervised_weight: float = 1.0,
        distillation_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("accumulation_steps", 1) != 1:
            raise ValueError(f"accumulation_steps must be 1, got {kwargs['accumulation_steps']}. Use a larger batch.")
        if _is_empty(unlabeled_data_loader):
            unlabeled_data_loader = None
        if unlabeled_data_loader is None:
            warnings.warn("There are no unlabeled images: training is supervised.", stacklevel=2)
        else:
            needed = {
                "ema_teacher": ema_teacher,
                "pseudo_labeler": pseudo_labeler,
                "unlabeled_loss_function": unlabeled_loss_function,
            }
            if missing := [name for name, part in needed.items() if part is None]:
                raise ValueError(f"{missing[0]} must be given when there are unlabeled images, got None.")
        self.unlabeled_data_loader = unlabeled_data_loader
        # Any: where they are used they are not None, as made sure of above.
        self.ema_teacher: Any = ema_teacher
        self.pseudo_labeler: Any = pseudo_labeler
        self.unlabeled_loss_function: Any = unlabeled_loss_function
        self.mix = mix
        self.distiller = distiller
        self.teacher_key = teacher_key
        self.unsupervised_weight = unsupervised_weight
        self.distillation_weight = distillation_weight
        self.progress = 0.0
        self.unlabeled_batch: dict[str, Any] | None = None
        self._unlabeled_batches: Iterator[dict[str, Any]] | None = None
        # Last, because it attaches the handlers, and they look for the attributes above.
        super().__init__(*args, **kwargs)
        # With the labeled one, so that what an epoch draws does not depend on the epochs before it.
        self.add_event_handler(Events.EPOCH_STARTED, self._restart_unlabeled)

    def _restart_unlabeled(self) -> None:
        self._unlabeled_batches = None

    def next_unlabeled(self) -> dict[str, Any]:
        """
        The next batch of the unlabeled stream, which starts over in each epoch and when it is exhausted.

        Raises:
            RuntimeError: When the stream has no batch at all.
        """
        for _ in range(2):
            if self._unlabeled_batches is None:
                self._unlabeled_batches = iter(self.unlabeled_data_loader or ())
            batch = next(self._unlabeled_batches, None)
            if batch is not None:
                return batch
            self._restart_unlabeled()
        raise RuntimeError("unlabeled_data_loader must yield batches, got none.")

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        self.unlabeled_batch = None
        use_unlabeled = self.unlabeled_data_loader is not None and self.unsupervised_weight > 0
        distiller = self.distiller if self.distillation_weight > 0 else None
        use_teacher = distiller is not None
        if distiller is not None and not distiller.is_due(self.state.iteration):
            distiller = None
        if not use_unlabeled and distiller is None:
            return super()._iteration(engine, batchdata)

        image, label = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)[:2]
        labeled: dict[str, torch.Tensor] = {
            BatchKeys.IMAGE: convert_to_tensor(image),
            BatchKeys.LABEL: convert_to_tensor(label),
        }
        if use_teacher and self.teacher_key not in labeled:
            # In every step, because a donor of this one may be pasted in one that distills.
            labeled[self.teacher_key] = self._to_device(batchdata[self.teacher_key])
        inputs = [labeled[BatchKeys.IMAGE]]
        taught = [labeled[self.teacher_key]] if distiller is not None else []

        self.network.train()
        self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        with torch.autocast(self.state.device.type, enabled=self.amp, **self.amp_kwargs):
            mixed = self._mixed(labeled, batchdata) if use_unlabeled else None
            if mixed is not None:
                inputs.append(mixed[BatchKeys.IMAGE])
                taught += [mixed[self.teacher_key]] if distiller is not None else []
            logits = self.inferer(torch.cat(inputs), self.network)
            size = len(image)
            output: dict[str, Any] = {Keys.IMAGE: image, Keys.LABEL: label, Keys.PRED: logits[:size]}
            self.state.output = output
            self.fire_event(IterationEvents.FORWARD_COMPLETED)

            loss = output[LossKeys.SUPERVISED] = self.loss_function(logits[:size], label).mean()
            if mixed is not None:
                term = self.unlabeled_loss_function(logits[size:], mixed[BatchKeys.LABEL], mixed[BatchKeys.WEIGHT])
                output[LossKeys.UNSUPERVISED] = term
                loss = loss + self.unsupervised_weight * term
            if distiller is not None:
                term = output[LossKeys.DISTILLATION] = distiller(torch.cat(taught))
                loss = loss + self.distillation_weight * term
            output[Keys.LOSS] = loss
        self.fire_event(IterationEvents.LOSS_COMPLETED)

        if self.amp and self.scaler is not None:
            self.scaler.scale(loss).backward()
            self.fire_event(IterationEvents.BACKWARD_COMPLETED)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward()
            self.fire_event(IterationEvents.BACKWARD_COMPLETED)
            self.optimizer.step()
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        # Not the output from above: decollation and postprocessing have replaced it by now.
        return self.state.output

    def _mixed(self, labeled: dict[str, torch.Tensor], labeled_batch: dict[str, Any]) -> dict[Any, torch.Tensor]:
        """The mixed patches: what the student learns from beside the labeled ones."""
        batch = self.unlabeled_batch = self.next_unlabeled()
        weak = self._to_device(batch[BatchKeys.IMAGE])
        unlabeled: dict[Any, torch.Tensor] = {BatchKeys.IMAGE: self._to_device(batch.get(BatchKeys.STRONG, weak))}
        if self.teacher_key in labeled and self.teacher_key not in unlabeled:
            unlabeled[self.teacher_key] = self._to_device(batch[self.teacher_key])
        with torch.no_grad():
            logits = self.inferer(weak, self.ema_teacher)
        unlabeled[BatchKeys.LABEL], unlabeled[BatchKeys.WEIGHT] = self.pseudo_labeler(logits)
        if self.mix is None:
            return unlabeled
        labeled = {**labeled, BatchKeys.WEIGHT: torch.ones_like(labeled[BatchKeys.LABEL], dtype=weak.dtype)}
        if BatchKeys.STRONG in labeled_batch:
            labeled[BatchKeys.IMAGE] = self._to_device(labeled_batch[BatchKeys.STRONG])
        both: dict[Any, Any] = {key: torch.cat([labeled[key].to(value), value]) for key, value in unlabeled.items()}
        if BatchKeys.POSITION in batch and BatchKeys.POSITION in labeled_batch:
            both[BatchKeys.POSITION] = torch.cat([labeled_batch[BatchKeys.POSITION], batch[BatchKeys.POSITION]])
        both[BatchKeys.LABELED] = [True] * len(labeled[BatchKeys.IMAGE]) + [False] * len(weak)
        return self.mix(both)

    def _to_device(self, value: torch.Tensor) -> torch.Tensor:
        return convert_to_tensor(value).to(self.state.device, non_blocking=self.non_blocking)


def _is_empty(loader: Any) -> bool:
    try:
        return len(loader) == 0
    except TypeError:  # as MONAI's Workflow: a stream without a length
        return False
