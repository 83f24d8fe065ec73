"""The exponential moving average of a student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

__all__ = ["EMATeacher"]


class EMATeacher(AveragedModel):
    """
    The moving average of a network, which teaches it and is what validation scores.

    torch's ``AveragedModel`` with a warm-up of the decay, ``min(decay, (1 + n) / (10 + n))`` after ``n`` updates:
    without it the random initial weights would linger for hundreds of steps. Buffers are averaged too. It is always in
    evaluation mode and has no gradients. ``ema.module`` is the averaged network, whose state dict the network itself
    can load.

    Reference: Tarvainen and Valpola, "Mean teachers are better role models", NeurIPS 2017, https://arxiv.org/abs/1703.01780.

    Args:
        network: the student.
        decay: share of the average that one update keeps.

    Raises:
        ValueError: When ``decay`` is not in [0, 1).
    """

    def __init__(self, network: nn.Module, decay: float = 0.99) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}.")
        super().__init__(getattr(network, "module", network), multi_avg_fn=self._average, use_buffers=True)
        self.decay = decay
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> EMATeacher:
        """Stays in evaluation mode, whatever ``mode``."""
        return super().train(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The averaged network's output."""
        if x.device.type == "cpu" and len(x) == 1:
            # Twice: PyTorch leaves oneDNN's convolutions for a single small image, which then takes longer than two.
            return self.module(x.expand(2, *x.shape[1:]))[:1]
        return self.module(x)

    def update(self, network: nn.Module) -> None:
        """Takes one step towards the present weights of ``network``; the first copies them."""
        self.update_parameters(getattr(network, "module", network))

    @torch.no_grad()
    def _average(
        self, averages: Sequence[torch.Tensor], values: Sequence[torch.Tensor], updates: torch.Tensor | int
    ) -> None:
        # The count stays on the CPU. ``updates`` is a copy of it on the device, which would have to be waited for.
        n = int(self.n_averaged)
        for average, value in zip(averages, values):
            if average.dtype.is_floating_point:
                average.lerp_(value.to(average), 1 - min(self.decay, (1 + n) / (10 + n)))
            else:
                average.copy_(value)
