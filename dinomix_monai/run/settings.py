"""Settings that are looked at before anything is built from them."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["check_counts", "check_device"]


def check_counts(**counts: Any) -> None:
    """
    Makes sure that settings are whole numbers of at least 1.

    Args:
        **counts: the settings by name.

    Raises:
        ValueError: When one is not; the message names it.
    """
    for name, value in counts.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a whole number >= 1, got {value!r}.")


def check_device(device: str | torch.device) -> None:
    """
    Makes sure that there is such a device.

    Raises:
        ValueError: When there is none.
    """
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise ValueError(
            f"device must be one of this machine, got {device} ({reason}). `cpu` is always there."
        ) from error
