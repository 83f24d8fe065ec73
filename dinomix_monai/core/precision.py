"""Mixed precision: where it pays, and which 16-bit type a device is best at."""

from __future__ import annotations

import torch

__all__ = ["autocast_dtype", "computing_in", "has_half_precision", "without_float16"]

# Names by which `torch.cpu.get_capabilities` knows instructions that multiply bfloat16.
_BFLOAT16 = ("avx512_bf16", "amx_bf16")


def has_half_precision(device: str | torch.device) -> bool:
    """
    Whether a device computes faster in 16 bits: a GPU, or a CPU with instructions for bfloat16.

    Other CPUs emulate bfloat16, and are slower with it. Versions of PyTorch that cannot name a CPU's instructions are
    taken to run on such a one.
    """
    device = torch.device(device)
    if device.type != "cpu":
        return True
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in _BFLOAT16)


def autocast_dtype(device: str | torch.device, amp: bool) -> torch.dtype | None:
    """
    What ``torch.autocast`` computes in on a device.

    Args:
        device: a CPU or a GPU.
        amp: whether mixed precision is wanted.

    Returns:
        ``bfloat16``, which has the range of single precision and so needs no scaling of gradients; ``float16`` on GPUs
        before NVIDIA's Ampere, which have no bfloat16; ``None`` without mixed precision.

    Raises:
        TypeError: When ``amp`` is not a truth value.
    """
    if not isinstance(amp, bool):
        raise TypeError(
            f"amp must be true or false, got {amp!r}. On the command line, write --amp True or --amp False."
        )
    if not amp:
        return None
    device = torch.device(device)
    is_old = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return torch.float16 if is_old else torch.bfloat16


def computing_in(dtype: torch.dtype | None, device: str | torch.device) -> torch.autocast:
    """``torch.autocast`` to what :func:`autocast_dtype` gave, for a device; ``None`` turns it off."""
    return torch.autocast(torch.device(device).type, dtype=dtype, enabled=dtype is not None)


def without_float16(dtype: torch.dtype | None) -> torch.dtype | None:
    """The type, but ``None`` for ``float16``, whose range the activations of a large teacher may leave."""
    return None if dtype == torch.float16 else dtype
