"""Numbers, names and tables as text."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["by", "did_you_mean", "number", "some", "text_table"]


def by(numbers: Iterable[float]) -> str:
    """
    Sides of something, or sizes along its axes.

    Example:
        >>> by((4.5, 4.5, 6))
        '4.5 x 4.5 x 6'
    """
    return " x ".join(f"{size:.0f}" if float(size).is_integer() else f"{size:g}" for size in numbers)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """
    The question that follows on a mistyped name, with a space in front; empty where no name is similar.

    Example:
        >>> did_you_mean("epoch", ["epochs", "seed"])
        ' Did you mean epochs?'
    """
    similar = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {similar[0]}?" if similar else ""


def number(value: float, decimals: int, sign: str = "") -> str:
    """A number with so many decimals, and a sign if it is ``"+"``; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:{sign}.{decimals}f}"


def some(names: Sequence[str], most: int = 5) -> str:
    """
    The first few of some names, and how many more there are.

    Example:
        >>> some(["a", "b", "c"], 2)
        'a, b and 1 more'
    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def text_table(rows: Sequence[Sequence[Any]], is_of_numbers: bool = True) -> list[str]:
    """
    Lines of a table.

    Args:
        rows: headings and cells as text, in columns of one length.
        is_of_numbers: whether all columns but the first are aligned to the right.

    Example:
        >>> text_table([["class", "Dice"], ["liver", "0.9"], ["a", "-"]])
        ['class  Dice', 'liver   0.9', 'a         -']
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    to_side = [str.ljust, *[str.rjust if is_of_numbers else str.ljust] * (len(widths) - 1)]
    return ["  ".join(side(*cell) for side, cell in zip(to_side, zip(row, widths))).rstrip() for row in rows]
