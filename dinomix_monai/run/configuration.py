"""The configuration that is running, as it is after overlays and the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

__all__ = ["idle_settings", "present_parser"]

_REFERENCE = re.compile(r"[@%](\w+)")
_TEXT_KEY = "_desc_"
_RESERVED = ("imports", "_meta_", _TEXT_KEY)


def present_parser() -> ConfigParser | None:
    """
    The parser that is evaluating the caller, or ``None`` when none is.

    MONAI hands a component its own arguments and nothing else of the configuration. The parser is looked for on the
    call stack, so it is the right one however many there are.
    """
    from monai.bundle import ConfigParser

    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back
    return None


def idle_settings(config: Mapping[str, Any]) -> list[str]:
    """
    Plain values at the top of a configuration that nothing refers to, and that therefore do nothing.

    MONAI takes any name on the command line, so that is what a mistyped setting looks like.

    Example:
        >>> idle_settings({"epochs": 3, "epoch": 5, "trainer": {"max_epochs": "@epochs"}})
        ['epoch']
    """
    named = {name for text in _strings(config) for name in _REFERENCE.findall(text)}
    return [name for name, value in config.items() if name not in named and name not in _RESERVED and _is_plain(value)]


def _strings(item: Any) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    elif isinstance(item, (Mapping, list, tuple)):
        pairs = item.items() if isinstance(item, Mapping) else enumerate(item)
        for key, value in pairs:
            if key != _TEXT_KEY:
                yield from _strings(value)


def _is_plain(value: Any) -> bool:
    # A component, an expression or a macro may be there to be asked for by name, as `run` is.
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and value[:1] not in "@$%")
