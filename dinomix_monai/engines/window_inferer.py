"""Inference on whole volumes, window by window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import SlidingWindowInfererAdapt

__all__ = ["WindowInferer"]


class WindowInferer(SlidingWindowInfererAdapt):
    """
    ``SlidingWindowInfererAdapt`` that runs the network in half precision where it is on a GPU.

    The precision belongs to the inferer because not every host of a bundle has mixed precision of its own: MONAI's
    evaluator has, MONAI Label has not. Windows are summed in the precision of the input. As the class it comes from, it
    stitches on the CPU when the memory of the GPU does not suffice.

    Args:
        *args: see ``SlidingWindowInfererAdapt``.
        half: whether to use half precision on a GPU; on a CPU it never is.
        **kwargs: see ``SlidingWindowInfererAdapt``.
    """

    def __init__(self, *args: Any, half: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.half = half

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """
        Args:
            inputs: images, shape (B, C, H, W[, D]).
            network: what is run on each batch of windows.
            *args: see ``SlidingWindowInferer``.
            **kwargs: see ``SlidingWindowInferer``.
        """
        with torch.autocast("cuda", dtype=torch.float16, enabled=self.half and inputs.is_cuda):
            return super().__call__(inputs, network, *args, **kwargs)
