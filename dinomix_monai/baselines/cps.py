"""CPS: cross pseudo supervision."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from monai.engines.utils import IterationEvents
from monai.utils import convert_to_tensor
from monai.utils.enums import CommonKeys as Keys
from torch import nn

from dinomix_monai.core.keys import BatchKeys, LossKeys
from dinomix_monai.engines import SemiSupervisedTrainer
from dinomix_monai.networks import EMATeacher

__all__ = ["CrossTrainer", "StudentPair"]


class StudentPair(nn.Module):
    """
    Two networks of one architecture that start from different weights, for methods in which each teaches the other.

    In training mode it gives the logits of both, in evaluation mode their mean, so that it is scored and used like any
    network.

    Args:
        student: the first network; the second is a copy of it whose weights are drawn anew.

    Raises:
        ValueError: When the copy has the weights of the first, because its modules have no ``reset_parameters``.
    """

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.first = student
        self.second = copy.deepcopy(student)
        for module in self.second.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        if all(torch.equal(a, b) for a, b in zip(self.first.parameters(), self.second.parameters())):
            raise ValueError(
                "student must have modules with reset_parameters, so that two of them differ, got "
                f"{type(student).__name__}, whose copy stayed the same."
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            x: what a student takes.

        Returns:
            Logits of both students in training mode, the mean of their logits in evaluation mode.
        """
        first, second = self.first(x), self.second(x)
        return (first, second) if self.training else (first + second) / 2


class CrossTrainer(SemiSupervisedTrainer):
    """
    Two students that teach each other, with the data, losses and handlers of
    :class:`dinomix_monai.engines.DinoMixTrainer`.

    Both see the labeled and the unlabeled patches. Each learns from the labels, and in all patches from what the other
    one holds to be the most probable class. With ``weightings``, classes count differently for the two, which keeps
    them from agreeing on what is frequent: that is DHC.

    References: Chen et al., "Semi-Supervised Semantic Segmentation with Cross Pseudo Supervision", CVPR 2021,
    https://arxiv.org/abs/2106.01226; Wang and Li, "DHC", MICCAI 2023, https://arxiv.org/abs/2307.11960.

    Args:
        network: a :class:`StudentPair`.
        loss_function: called for each student with logits, labels and class weights (``None`` without weightings) of
            the labeled patches.
        unlabeled_loss_function: called likewise with the other student's labels of all patches.
        weightings: for the first and the second student, gives class weights for its logits of labeled patches, their
            labels and its logits of unlabeled patches (or ``None``); ``None`` for plain CPS.
        unlabeled_data_loader: batches with ``image``; ``None`` or empty for supervised training.
        ema_teacher: moving average of the pair; it is scored, and teaches nobody.
        unsupervised_weight: weight of what the students learn from each other.
        **kwargs: see ``SupervisedTrainer``; ``accumulation_steps`` must stay 1.

    Raises:
        TypeError: When ``network`` is not a pair.
        ValueError: When there are not two weightings, or no labeled images.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        unlabeled_loss_function: Callable,
        weightings: nn.ModuleList | None = None,
        unlabeled_data_loader: Iterable | None = None,
        ema_teacher: EMATeacher | None = None,
        unsupervised_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        if not isinstance(network, StudentPair):
            raise TypeError(f"network must be a StudentPair, got {type(network).__name__}.")
        if weightings is not None and len(weightings) != 2:
            raise ValueError(f"weightings must be one for each of two students, got {len(weightings)}.")
        self.unlabeled_loss_function = unlabeled_loss_function
        self.weightings = weightings
        super().__init__(
            network=network,
            unlabeled_data_loader=unlabeled_data_loader,
            ema_teacher=ema_teacher,
            unsupervised_weight=unsupervised_weight,
            **kwargs,
        )
        if not self.has_labels:
            raise ValueError("train_data_loader must yield labeled batches, got none: two students need some labels.")

    @property
    def to_save(self) -> dict[str, Any]:
        """See :attr:`SemiSupervisedTrainer.to_save`."""
        return super().to_save if self.weightings is None else {**super().to_save, "weightings": self.weightings}

    def _iteration(self, engine: Any, batchdata: dict[str, Any]) -> Any:
        self.unlabeled_batch = None
        image, label = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)[:2]
        image, label = convert_to_tensor(image), convert_to_tensor(label)
        inputs = [image]
        if self.uses_unlabeled:
            inputs.append(self._to_device(self.next_unlabeled()[BatchKeys.IMAGE]))
        size = len(image)

        self.student.train()
        self.optimizer.zero_grad(set_to_none=self.optim_set_to_none)
        with self.autocast():
            logits = self.inferer(torch.cat(inputs), self.student)
            mean = (logits[0][:size] + logits[1][:size]).detach() / 2
            output: dict[str, Any] = {Keys.IMAGE: image, Keys.LABEL: label, Keys.PRED: mean}
            self.state.output = output
            self.fire_event(IterationEvents.FORWARD_COMPLETED)

            weights = self._class_weights(logits, label)
            terms = [self.loss_function(own[:size], label, weight) for own, weight in zip(logits, weights)]
            loss = output[LossKeys.SUPERVISED] = torch.stack(terms).sum()
            if len(inputs) > 1:
                labels = [own.detach().argmax(1, keepdim=True) for own in logits]
                terms = [
                    self.unlabeled_loss_function(own, other, weight)
                    for own, other, weight in zip(logits, reversed(labels), weights)
                ]
                output[LossKeys.UNSUPERVISED] = torch.stack(terms).sum()
                loss = loss + self.unsupervised_weight * output[LossKeys.UNSUPERVISED]
            output[Keys.LOSS] = loss
        return self._backward_and_step(loss)

    def _class_weights(self, logits: tuple[torch.Tensor, ...], label: torch.Tensor) -> list[torch.Tensor | None]:
        if self.weightings is None:
            return [None] * len(logits)
        size = len(label)
        return [
            weighting(own[:size].detach(), label, own[size:].detach() if len(own) > size else None)
            for weighting, own in zip(self.weightings, logits)
        ]
