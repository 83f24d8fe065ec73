"""Means of scores in which NaN is a value left out."""

from __future__ import annotations

import warnings

import numpy as np

__all__ = ["nan_mean", "with_mean"]


def nan_mean(values: np.ndarray, axis: int) -> np.ndarray:
    """Mean along an axis without the NaN values; NaN, and no warning, where there are no others."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(values, axis=axis)


def with_mean(values: np.ndarray) -> np.ndarray:
    """
    Values of classes, shape (n, classes), with their mean over the classes behind them.

    Example:
        >>> with_mean(np.array([[0.5, 1.0, np.nan]])).tolist()
        [[0.5, 1.0, nan, 0.75]]
    """
    return np.concatenate([values, nan_mean(values, axis=1)[:, None]], axis=1)
