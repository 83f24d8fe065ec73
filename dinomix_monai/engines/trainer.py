"""The semi-supervised trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from monai.engines.utils import IterationEvents
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys as Keys

from dinomix_monai.core.keys import BatchKeys, LossKeys
from dinomix_monai.engines.feature_distiller import FeatureDistiller
from dinomix_monai.engines.pseudo_labeler import PseudoLabeler
from dinomix_monai.engines.semi_supervised_trainer import SemiSupervisedTrainer
from dinomix_monai.networks import EMATeacher
from dinomix_monai.transforms import PICCutMixd

__all__ = ["DinoMixTrainer"]


class DinoMixTrainer(SemiSupervisedTrainer):
    """
    ``monai.engines.SupervisedTrainer`` that also learns from unlabeled images and from a frozen teacher.

    One step: the EMA teacher labels the weak view of the unlabeled patches; PIC mixes labeled and unlabeled ones; the
    student sees the clean labeled and the mixed patches in one forward pass; the loss is ``supervised +
    unsupervised_weight * unsupervised + distillation_weight * distillation``. Where a weight is 0 its part is not
    computed at all, and with both at 0 a step is exactly ``SupervisedTrainer``'s.

    The frozen teacher needs no label and no confidence, so it teaches the unlabeled patches from the first step on: as
    they are while pseudo-labels have no weight, and mixed afterwards.

    Without labeled images (a site of a federation that has none) an epoch goes over the unlabeled ones: the student
    sees the mixed patches, or what it distills from while they have no weight. A step in which it has nothing to learn
    leaves everything as it is and fires no ``MODEL_COMPLETED``.

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
        distill_mixed: whether mixed patches are taught, too, with tokens that were mixed by the same boxes; else only
            patches that were not mixed are.
        **kwargs: see ``SupervisedTrainer``; ``accumulation_steps`` must stay 1, and ``train_data_loader`` may be
            ``None`` or empty when there are no labeled images.

    Raises:
        ValueError: When a part is missing that the unlabeled images need, there are images of neither kind, or
            ``accumulation_steps`` is not 1.
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
        distill_mixed: bool = True,
        **kwargs: Any,
    ) -> None:
        # Any: where they are used they are not None, as made sure of below.
        self.pseudo_labeler: Any = pseudo_labeler
        self.unlabeled_loss_function: Any = unlabeled_loss_function
        self.mix = mix
        self.distiller = distiller
        self.teacher_key = teacher_key
        self.distillation_weight = distillation_weight
        self.distill_mixed = distill_mixed
        super().__init__(
            *args,
            unlabeled_data_loader=unlabeled_data_loader,
            ema_teacher=ema_teacher,
            unsupervised_weight=unsupervised_weight,
            **kwargs,
        )
        needed = ("ema_teacher", "pseudo_labeler", "unlabeled_loss_function")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.unlabeled_data_loader is not None and missing:
            raise ValueError(f"{missing[0]} must be given when there are unlabeled images, got None.")

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        self.unlabeled_batch = None
        use_unlabeled = self.uses_unlabeled
        distiller = self.distiller if self.distillation_weight > 0 else None
        use_teacher = distiller is not None
        if distiller is not None and not distiller.is_due(self.state.iteration):
            distiller = None
        looks_at_unlabeled = self.unlabeled_data_loader is not None and (use_unlabeled or distiller is not None)
        if not self.has_labels and not looks_at_unlabeled:
            self.state.output = {}
            return self.state.output

        labeled = self._labeled(batchdata, use_teacher) if self.has_labels else None
        self.network.train()
        self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        with self.autocast():
            unlabeled = None
            if looks_at_unlabeled:
                batch = batchdata if labeled is None else self.next_unlabeled()
                unlabeled = self._unlabeled(batch, use_teacher)
                if use_unlabeled:
                    unlabeled = self._mixed(unlabeled, batch, labeled, batchdata)
            parts = [part for part in (labeled, unlabeled) if part is not None]
            # Labeled patches come first, so what is taught is the beginning of what the student sees.
            taught = parts if self.distill_mixed or not use_unlabeled else parts[: labeled is not None]
            logits = self.inferer(torch.cat([part[BatchKeys.IMAGE] for part in parts]), self.network)
            size = len(parts[0][BatchKeys.IMAGE])
            output: dict[str, Any] = {key: parts[0][key] for key in (Keys.IMAGE, Keys.LABEL) if key in parts[0]}
            output[Keys.PRED] = logits[:size]
            self.state.output = output
            self.fire_event(IterationEvents.FORWARD_COMPLETED)

            loss: Any = 0
            if labeled is not None:
                loss = output[LossKeys.SUPERVISED] = self.loss_function(logits[:size], labeled[BatchKeys.LABEL]).mean()
                logits = logits[size:]
            if unlabeled is not None and use_unlabeled:
                term = self.unlabeled_loss_function(logits, unlabeled[BatchKeys.LABEL], unlabeled[BatchKeys.WEIGHT])
                output[LossKeys.UNSUPERVISED] = term
                loss = loss + self.unsupervised_weight * term
            if distiller is not None and taught:
                term = output[LossKeys.DISTILLATION] = distiller(torch.cat([part[self.teacher_key] for part in taught]))
                loss = loss + self.distillation_weight * term
            output[Keys.LOSS] = loss
        return self._descend(loss)

    def _labeled(self, batch: dict[str, Any], use_teacher: bool) -> dict[Any, torch.Tensor]:
        image, label = self.prepare_batch(batch, self.state.device, self.non_blocking, **self.to_kwargs)[:2]
        labeled: dict[Any, Any] = {BatchKeys.IMAGE: convert_to_tensor(image), BatchKeys.LABEL: convert_to_tensor(label)}
        if use_teacher and self.teacher_key not in labeled:
            # In every step, because a donor of this one may be pasted in one that distills.
            labeled[self.teacher_key] = self._to_device(batch[self.teacher_key])
        return labeled

    def _unlabeled(self, batch: dict[str, Any], use_teacher: bool) -> dict[Any, torch.Tensor]:
        image = batch.get(BatchKeys.STRONG, batch[BatchKeys.IMAGE])
        unlabeled: dict[Any, torch.Tensor] = {BatchKeys.IMAGE: self._to_device(image)}
        if use_teacher and self.teacher_key not in unlabeled:
            unlabeled[self.teacher_key] = self._to_device(batch[self.teacher_key])
        return unlabeled

    def _mixed(
        self,
        unlabeled: dict[Any, torch.Tensor],
        batch: dict[str, Any],
        labeled: dict[Any, torch.Tensor] | None,
        labeled_batch: dict[str, Any],
    ) -> dict[Any, torch.Tensor]:
        """The mixed patches: what the student learns from beside the labeled ones."""
        weak = self._to_device(batch[BatchKeys.IMAGE])
        with torch.no_grad(), self.autocast(gradient=False):
            logits = self.inferer(weak, self.ema_teacher)
        unlabeled[BatchKeys.LABEL], unlabeled[BatchKeys.WEIGHT] = self.pseudo_labeler(logits)
        if self.mix is None:
            return unlabeled
        both: dict[Any, Any] = dict(unlabeled)
        batches = [batch]
        if labeled is not None:
            labeled = {**labeled, BatchKeys.WEIGHT: torch.ones_like(labeled[BatchKeys.LABEL], dtype=weak.dtype)}
            if BatchKeys.STRONG in labeled_batch:
                labeled[BatchKeys.IMAGE] = self._to_device(labeled_batch[BatchKeys.STRONG])
            both = {key: torch.cat([labeled[key].to(value), value]) for key, value in unlabeled.items()}
            batches = [labeled_batch, batch]
        if all(BatchKeys.POSITION in each for each in batches):
            both[BatchKeys.POSITION] = torch.cat([each[BatchKeys.POSITION] for each in batches])
        both[BatchKeys.LABELED] = [True] * (len(both[BatchKeys.IMAGE]) - len(weak)) + [False] * len(weak)
        # In the precision of what it is given: its geometry would be that of half precision, too.
        with torch.autocast(self.state.device.type, enabled=False):
            return self.mix(both)
