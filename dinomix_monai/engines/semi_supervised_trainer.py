"""What trainers with unlabeled images have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer, Workflow
from monai.engines.utils import IterationEvents
from monai.utils import convert_to_tensor
from torch import nn

from dinomix_monai.core.processes import process_count
from dinomix_monai.networks import EMATeacher

__all__ = ["SemiSupervisedTrainer"]


class SemiSupervisedTrainer(SupervisedTrainer):
    """
    ``monai.engines.SupervisedTrainer`` with a second stream of images, and a moving average that handlers update.

    What a step does with the images is up to its subclasses. It owns no schedule: handlers set ``unsupervised_weight``
    and ``progress``.

    Unlike MONAI's, it takes its arguments by name only.

    Args:
        network: the student, and nothing around it: handlers, checkpoints and servers take its weights.
        train_data_loader: batches of labeled images; ``None`` or empty where there are none, an epoch then goes over
            the unlabeled ones.
        unlabeled_data_loader: batches without labels; ``None`` or empty for supervised training.
        ema_teacher: moving average of the network, which is what validation scores.
        parallel: wraps all that a step differentiates, such as ``DistributedDataParallel`` with all but its first
            argument; needed by one of several processes, ``None`` for a process of its own.
        unsupervised_weight: weight of what is learned from unlabeled images.
        amp: whether to use mixed precision, in ``amp_kwargs["dtype"]`` or what PyTorch takes there; on a CPU where no
            gradient is computed, see :meth:`autocast`.
        **kwargs: see ``SupervisedTrainer``; ``accumulation_steps`` must stay 1.

    Attributes:
        student: what a step calls: what :meth:`make_student` makes of the network, in ``parallel``.
        has_labels: whether there are labeled images.
        scaler: scales gradients in ``float16``, else ``None``: other types need no scaling, which waits for the GPU.
        unlabeled_batch: what the present step took from the unlabeled stream, ``None`` for nothing.

    Raises:
        ValueError: When there are images of neither kind, ``accumulation_steps`` is not 1, or several processes train
            and ``parallel`` is missing.
    """

    def __init__(
        self,
        *,
        train_data_loader: Iterable | None,
        unlabeled_data_loader: Iterable | None = None,
        ema_teacher: EMATeacher | None = None,
        unsupervised_weight: float = 1.0,
        amp: bool = False,
        parallel: Callable[[nn.Module], nn.Module] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("accumulation_steps", 1) != 1:
            raise ValueError(f"accumulation_steps must be 1, got {kwargs['accumulation_steps']}. Use a larger batch.")
        if process_count() > 1 and parallel is None:
            raise ValueError(
                f"parallel must keep the gradients of {process_count()} processes together, got None. Put "
                "multi_gpu_train.json last in the list of configs."
            )
        if _is_empty(unlabeled_data_loader):
            unlabeled_data_loader = None
        self.has_labels = not _is_empty(train_data_loader)
        if not self.has_labels and unlabeled_data_loader is None:
            raise ValueError("train_data_loader or unlabeled_data_loader must yield batches, got none of either.")
        if unlabeled_data_loader is None:
            warnings.warn("There are no unlabeled images: training is supervised.", stacklevel=3)
        self.unlabeled_data_loader = unlabeled_data_loader
        # Any: where it is used it is not None, as subclasses make sure of.
        self.ema_teacher: Any = ema_teacher
        self.unsupervised_weight = unsupervised_weight
        self.progress = 0.0
        self.unlabeled_batch: dict[str, Any] | None = None
        self._unlabeled_batches: Iterator[dict[str, Any]] | None = None
        epoch_over: Any = train_data_loader if self.has_labels else unlabeled_data_loader
        # Last, because it attaches the handlers, and they look for the attributes above.
        super().__init__(train_data_loader=epoch_over, **kwargs)
        student = self.make_student(self.network)
        self.student = student if parallel is None else parallel(student)
        # Not MONAI's, which is for GPUs alone.
        self.amp = amp
        kind = self.state.device.type
        half = self.amp_kwargs.get("dtype") or torch.get_autocast_dtype(kind)
        if amp and kind != "cpu" and half == torch.float16:
            self.scaler = torch.amp.GradScaler(kind)  # type: ignore[assignment]  # MONAI names its old class
        # With the labeled one, so that what an epoch draws does not depend on the epochs before it.
        self.add_event_handler(Events.EPOCH_STARTED, self._restart_unlabeled)
        self.add_event_handler(IterationEvents.MODEL_COMPLETED, self._detach_output)

    def make_student(self, network: nn.Module) -> nn.Module:
        """What a step calls; has all parameters that it trains."""
        return network

    @property
    def to_save(self) -> dict[str, Any]:
        """
        What a run needs to go on, by name, as Ignite's ``Checkpoint`` has it: each with a state dict.

        A subclass that has parts with a state adds them.
        """
        parts = {"network": self.network, "optimizer": self.optimizer}
        own = {"ema_teacher": self.ema_teacher, "scaler": self.scaler}
        return {**parts, **{name: part for name, part in own.items() if part is not None}}

    def autocast(self, gradient: bool = True) -> torch.autocast:
        """
        A context of the trainer's precision.

        Args:
            gradient: whether anything in it is differentiated. If so, a CPU stays in single precision: its bfloat16
                gradients of a 3D convolution's weights hold memory that nothing has written for some shapes, 3 x 3 x 3
                on a first axis of 2 voxels among them (PyTorch 2.14 with oneDNN).
        """
        enabled = self.amp and not (gradient and self.state.device.type == "cpu")
        return torch.autocast(self.state.device.type, enabled=enabled, **self.amp_kwargs)

    def run(self) -> None:  # type: ignore[override]  # as MONAI's
        """Trains, from where it is, up to ``max_epochs``."""
        # Past MONAI's trainer, which makes a new scaler here, whatever the type.
        Workflow.run(self)

    @property
    def uses_unlabeled(self) -> bool:
        """Whether a step looks at unlabeled images at present."""
        return self.unlabeled_data_loader is not None and self.unsupervised_weight > 0

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
                self.unlabeled_batch = batch
                return batch
            self._restart_unlabeled()
        raise RuntimeError("unlabeled_data_loader must yield batches, got none.")

    def _detach_output(self) -> None:
        """Without decollation, which does the same, the output would carry its graph to whoever looks at it."""
        if isinstance(self.state.output, dict):
            for key, value in self.state.output.items():
                if isinstance(value, torch.Tensor):
                    self.state.output[key] = value.detach()

    def _backward_and_step(self, loss: torch.Tensor) -> Any:
        """From the loss to the end of a step, with MONAI's events; returns the output of the step."""
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        if self.scaler is not None:
            self.scaler.scale(loss).backward()
            self.fire_event(IterationEvents.BACKWARD_COMPLETED)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            loss.backward()
            self.fire_event(IterationEvents.BACKWARD_COMPLETED)
            self.optimizer.step()
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        # Not what the step has made: decollation and postprocessing have replaced it by now.
        return self.state.output

    def _to_device(self, value: torch.Tensor) -> torch.Tensor:
        return convert_to_tensor(value).to(self.state.device, non_blocking=self.non_blocking)


def _is_empty(loader: Any) -> bool:
    if loader is None:
        return True
    try:
        return len(loader) == 0
    except TypeError:  # as MONAI's Workflow: a stream without a length
        return False
