"""Fingerprint of a set of weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch

__all__ = ["fingerprint"]


def fingerprint(state: Mapping[str, torch.Tensor]) -> str:
    """
    SHA-256 over names, dtypes, shapes and bytes of tensors, in the order of their names.

    Taken from the tensors as a model holds them, it does not depend on the file format they came in, nor on the device.
    A query or value bias that is zero throughout is left out: timm, which finds them zero in Meta's DINOv3, lists the
    models both with and without them, and two sites whose teachers compute the same must not disagree.

    Args:
        state: tensors by name, as from ``Module.state_dict()``.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import torch
        >>> from dinomix_monai.teacher import fingerprint
        >>> fingerprint({"weight": torch.zeros(2)})[:12]
        '0b15b00b4b5f'
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        if name.endswith(("attn.q_bias", "attn.v_bias")) and not tensor.any():
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        # As bytes, because NumPy has no bfloat16; flattened, because a tensor without axes has no byte view.
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
