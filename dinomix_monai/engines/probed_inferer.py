"""Inference by a network and a frozen teacher together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from monai.inferers import Inferer

from dinomix_monai.engines.token_probe import TokenProbe

__all__ = ["ProbedInferer"]


class ProbedInferer(Inferer):
    """
    An inferer that adds the logits of a teacher's probe to those of a network.

    Args:
        inferer: runs the network on whole volumes.
        probe: see :class:`dinomix_monai.engines.TokenProbe`. With ``None``, or a weight of 0, the network is alone.
    """

    def __init__(self, inferer: Inferer, probe: TokenProbe | None = None) -> None:
        super().__init__()
        self.inferer, self.probe = inferer, probe

    def __call__(self, inputs: torch.Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """
        Args:
            inputs: images, shape (B, C, H, W, D).
            network: what is run on each batch of windows.
            *args: see ``Inferer``.
            **kwargs: see ``Inferer``.
        """
        logits = self.inferer(inputs, network, *args, **kwargs)
        if self.probe is None or not self.probe.weight:
            return logits
        return logits + self.probe(inputs).to(logits)
