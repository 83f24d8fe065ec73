"""The semi-supervised trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from monai.engines.utils import IterationEvents
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from dinomix_monai.core.keys import BatchKeys, LossKeys, StepKeys
from dinomix_monai.engines.feature_distiller import FeatureDistiller, TaughtStudent
from dinomix_monai.engines.patch_batch import PatchBatch
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
        **kwargs: see :class:`SemiSupervisedTrainer` and ``SupervisedTrainer``.

    Raises:
        ValueError: When a part is missing that the unlabeled images need, there are images of neither kind, or
            ``accumulation_steps`` is not 1.
    """

    def __init__(
        self,
        *,
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
        self.mix: Any = mix
        self.distiller: Any = distiller
        self.teacher_key = teacher_key
        self.distillation_weight = distillation_weight
        self.distill_mixed = distill_mixed
        super().__init__(
            unlabeled_data_loader=unlabeled_data_loader,
            ema_teacher=ema_teacher,
            unsupervised_weight=unsupervised_weight,
            **kwargs,
        )
        needed = ("ema_teacher", "pseudo_labeler", "unlabeled_loss_function")
        missing = [name for name in needed if getattr(self, name) is None]
        if self.unlabeled_data_loader is not None and missing:
            raise ValueError(f"{missing[0]} must be given when there are unlabeled images, got None.")

    def make_student(self, network: nn.Module) -> nn.Module:
        """The network and the projection heads, see :class:`TaughtStudent`."""
        return TaughtStudent(network, self.distiller)

    @property
    def to_save(self) -> dict[str, Any]:
        """See :attr:`SemiSupervisedTrainer.to_save`."""
        own = {"pseudo_labeler": self.pseudo_labeler, "mix": self.mix, "distiller": self.distiller}
        return {**super().to_save, **{name: part for name, part in own.items() if part is not None}}

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        plan = self._plan_step()
        labeled_data, unlabeled_data = self._data_of_step(batchdata, plan)
        if labeled_data is None and unlabeled_data is None:
            self.state.output = {}
            return self.state.output

        labeled: Any = None if labeled_data is None else self._labeled(labeled_data)
        unlabeled: Any = None if unlabeled_data is None else self._patches(unlabeled_data)
        self.student.train()
        self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        with self.autocast():
            if plan.learns_pseudo_labels:
                unlabeled = self._pseudo_labeled(unlabeled)
                confident_share = unlabeled.weight.count_nonzero() / unlabeled.weight.numel()
            if unlabeled is not None:
                unlabeled = self._strong_view(unlabeled, unlabeled_data)
            if plan.learns_pseudo_labels and self.mix is not None:
                donors = self._strong_view(self._completed(labeled), labeled_data)
                unlabeled = self._mixed(donors, unlabeled)

            # Labeled patches come first, so what is taught is the beginning of what the student sees.
            seen = PatchBatch.cat([part for part in (labeled, unlabeled) if part is not None])
            taught, _ = seen.split(self._count_taught(seen, plan))
            layers = self.distiller.draw_layers() if plan.distills else ()
            logits, features = self.inferer(seen.image, self.student, len(taught), layers)
            output = self._forward_completed(unlabeled if labeled is None else labeled, logits)

            if labeled is not None:
                labeled_logits, logits = logits[: len(labeled)], logits[len(labeled) :]
                output[LossKeys.SUPERVISED] = self.loss_function(labeled_logits, labeled.label).mean()
            if plan.learns_pseudo_labels:
                term = self.unlabeled_loss_function(logits, unlabeled.label, unlabeled.weight)
                output |= {LossKeys.UNSUPERVISED: term, StepKeys.CONFIDENT_SHARE: confident_share}
            if plan.distills:
                output[LossKeys.DISTILLATION] = self.distiller(features, taught.seen_by_teacher, layers)
            loss = output[Keys.LOSS] = self._weighted_sum(output)
        return self._backward_and_step(loss)

    def _plan_step(self) -> _StepPlan:
        learns = self.uses_unlabeled
        is_due = self._uses_teacher and self.distiller.is_due(self.state.iteration)
        # Without labels and with mixed patches left out, nobody is there to be taught.
        return _StepPlan(learns, is_due and (self.has_labels or self.distill_mixed or not learns))

    @property
    def _uses_teacher(self) -> bool:
        return self.distiller is not None and self.distillation_weight > 0

    def _data_of_step(self, batchdata: dict[str, Any], plan: _StepPlan) -> tuple[dict | None, dict | None]:
        """Batches of labeled and of unlabeled patches as they were loaded; ``None`` for what the step does not see."""
        self.unlabeled_batch = None
        sees_unlabeled = self.unlabeled_data_loader is not None and (plan.learns_pseudo_labels or plan.distills)
        if not self.has_labels:
            return None, batchdata if sees_unlabeled else None
        return batchdata, self.next_unlabeled() if sees_unlabeled else None

    def _labeled(self, data: dict[str, Any]) -> PatchBatch:
        image, label = self.prepare_batch(data, self.state.device, self.non_blocking, **self.to_kwargs)[:2]
        patches = self._patches({**data, BatchKeys.IMAGE: image})
        return replace(patches, label=convert_to_tensor(label), is_labeled=(True,) * len(patches))

    def _patches(self, data: dict[str, Any]) -> PatchBatch:
        image = self._to_device(data[BatchKeys.IMAGE])
        # In every step, because a donor of this one may be pasted in one that distills.
        has_view = self._uses_teacher and self.teacher_key != BatchKeys.IMAGE
        view = self._to_device(data[self.teacher_key]) if has_view else None
        position = data.get(BatchKeys.POSITION)
        return PatchBatch(image, teacher_view=view, position=position, is_labeled=(False,) * len(image))

    def _strong_view(self, patches: PatchBatch | None, data: dict[str, Any] | None) -> PatchBatch | None:
        """The same patches as their strong view shows them, if they have one."""
        if patches is None or data is None or BatchKeys.STRONG not in data:
            return patches
        return replace(patches, image=self._to_device(data[BatchKeys.STRONG]))

    def _pseudo_labeled(self, weak: PatchBatch) -> PatchBatch:
        """Unlabeled patches with the labels and weights that the EMA teacher gives them."""
        with torch.no_grad(), self.autocast(gradient=False):
            logits = self.inferer(weak.image, self.ema_teacher)
        label, weight = self.pseudo_labeler(logits)
        return replace(weak, label=label, weight=weight)

    def _completed(self, labeled: PatchBatch | None) -> PatchBatch | None:
        """Labeled patches with weights; what nobody has looked for in them is filled in by the EMA teacher."""
        if labeled is None:
            return None
        if not self.pseudo_labeler.completes:
            weight = torch.ones_like(labeled.label, dtype=labeled.image.dtype)  # type: ignore[arg-type]  # it has one
            return replace(labeled, weight=weight)
        with torch.no_grad(), self.autocast(gradient=False):
            logits = self.inferer(labeled.image, self.ema_teacher)
        label, weight = self.pseudo_labeler.complete(labeled.label, logits)
        return replace(labeled, label=label, weight=weight.to(labeled.image.dtype))

    def _mixed(self, labeled: PatchBatch | None, unlabeled: PatchBatch) -> PatchBatch:
        """What the student learns from beside the clean labeled patches."""
        both = unlabeled if labeled is None else PatchBatch.cat([labeled, unlabeled])
        # In the precision of what it is given: its geometry would be that of half precision, too.
        with torch.autocast(self.state.device.type, enabled=False):
            return PatchBatch.from_dict(self.mix(both.to_dict(self.teacher_key)), self.teacher_key)

    def _count_taught(self, seen: PatchBatch, plan: _StepPlan) -> int:
        if not plan.distills:
            return 0
        return len(seen) if self.distill_mixed or not plan.learns_pseudo_labels else sum(seen.is_labeled)

    def _forward_completed(self, batch: PatchBatch, logits: torch.Tensor) -> dict[str, Any]:
        """MONAI's event, and its output: of the labeled patches where there are any."""
        output: dict[str, Any] = {Keys.IMAGE: batch.image, Keys.PRED: logits[: len(batch)]}
        if batch.label is not None:
            output[Keys.LABEL] = batch.label
        self.state.output = output
        self.fire_event(IterationEvents.FORWARD_COMPLETED)
        return output

    def _weighted_sum(self, terms: dict[str, Any]) -> Any:
        weights = {
            LossKeys.SUPERVISED: 1.0,
            LossKeys.UNSUPERVISED: self.unsupervised_weight,
            LossKeys.DISTILLATION: self.distillation_weight,
        }
        return sum(weight * terms[name] for name, weight in weights.items() if name in terms)


@dataclass(frozen=True)
class _StepPlan:
    """
    What one step learns from, beside labels where there are any.

    Args:
        learns_pseudo_labels: whether it learns from the EMA teacher's labels of unlabeled patches.
        distills: whether it learns from the frozen teacher.
    """

    learns_pseudo_labels: bool
    distills: bool
