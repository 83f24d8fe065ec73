"""Inference on whole volumes, window by window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SlidingWindowInfererAdapt

from dinomix_monai.core.precision import computing_in

__all__ = ["WindowInferer"]


class WindowInferer(SlidingWindowInfererAdapt):
    """
    ``SlidingWindowInfererAdapt`` that can run the network in mixed precision.

    The precision belongs to the inferer because not every host of a bundle has mixed precision of its own: MONAI's
    evaluator has on GPUs, MONAI Label has not. Windows are summed in the precision of the input. As the class it comes
    from, it stitches on the CPU when the memory of the GPU does not suffice.

    Args:
        *args: see ``SlidingWindowInfererAdapt``.
        dtype: what ``torch.autocast`` computes in, see :func:`dinomix_monai.core.precision.autocast_dtype`; ``None``
            for the network's own precision.
        **kwargs: see ``SlidingWindowInfererAdapt``.
    """

    def __init__(self, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.dtype = dtype

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """
        Args:
            inputs: images, shape (B, C, H, W[, D]).
            network: what is run on each batch of windows.
            *args: see ``SlidingWindowInferer``.
            **kwargs: see ``SlidingWindowInferer``.
        """
        with computing_in(self.dtype, inputs.device):
            return super().__call__(inputs, network, *args, **kwargs)
