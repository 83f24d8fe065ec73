"""Weight files of the Hugging Face hub."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

__all__ = ["hub_file"]

_TIMEOUT_S = 5
# The library has changed its HTTP client more than once. The base of its own error is that client's base error.
_HUB_ERRORS: tuple[Any, ...] = (OSError, *HfHubHTTPError.__bases__)


def hub_file(hub_id: str, filename: str = "model.safetensors") -> Path:
    """
    Path of a file of the hub: in the hub's local cache, else downloaded into it.

    A cached file costs no network access. Where the network is absent the answer comes after one question, within
    seconds and without a line in the log; ``hf_hub_download`` alone asks six times in half a minute and logs each.

    Args:
        hub_id: repository, such as ``"timm/vit_small_patch16_dinov3.lvd1689m"``.
        filename: file in it.

    Raises:
        ConnectionError: When the file is not cached and the hub does not give it; the message is the reason.
    """
    with suppress(LocalEntryNotFoundError):
        return Path(hf_hub_download(hub_id, filename, local_files_only=True))
    try:
        get_hf_file_metadata(hf_hub_url(hub_id, filename), timeout=_TIMEOUT_S)
        return Path(hf_hub_download(hub_id, filename))
    except _HUB_ERRORS as error:
        reason = next(iter(str(error).splitlines()), "")
        raise ConnectionError(f"{type(error).__name__}: {reason}") from error
