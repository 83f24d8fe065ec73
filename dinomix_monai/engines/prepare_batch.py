"""From a batch to what the network sees."""

from __future__ import annotations

from typing import Any

import torch
from monai.engines.utils import PrepareBatch, default_prepare_batch
from monai.utils import convert_to_tensor

__all__ = ["PlainPrepareBatch"]


class PlainPrepareBatch(PrepareBatch):
    """MONAI's default, but with plain tensors: meta information costs time in every operation of a network."""

    def __call__(
        self,
        batchdata: dict[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            batchdata: batch with ``image`` and, if there is one, ``label``.
            device: device to move to.
            non_blocking: see ``torch.Tensor.to``.
            **kwargs: other arguments of ``torch.Tensor.to``.
        """
        image, label = default_prepare_batch(batchdata, device, non_blocking, **kwargs)
        return convert_to_tensor(image), None if label is None else convert_to_tensor(label)
