"""Tables as text."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["number", "text_table"]


def number(value: float, decimals: int, sign: str = "") -> str:
    """A number with so many decimals, and a sign if it is ``"+"``; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:{sign}.{decimals}f}"


def text_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """
    Lines with the first column aligned to the left and the others to the right.

    Example:
        >>> text_table([["class", "Dice"], ["liver", "0.9"], ["a", "-"]])
        ['class  Dice', 'liver   0.9', 'a         -']
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = []
    for first, *others in rows:
        cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:]))]
        lines.append("  ".join(cells).rstrip())
    return lines
