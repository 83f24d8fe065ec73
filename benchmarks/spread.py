"""A mean over seeds, as the tables of the benchmarks print it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

__all__ = ["spread"]


def spread(values: Sequence[float]) -> str:
    """Mean and, of more than one value, the standard deviation of a sample."""
    return f"{statistics.mean(values):.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")
