"""Dice of each class as a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dinomix_monai.core.text import number, text_table
from dinomix_monai.metrics.nan_means import nan_mean

__all__ = ["ProbeTable"]


@dataclass(frozen=True)
class ProbeTable:
    """
    Dice of each class by what the probe was given.

    Args:
        class_names: names by label value, background first.
        voxels: number of labeled voxels of each foreground class, shape (classes - 1,).
        dice: for each kind of features, the Dice of each foreground class, shape (classes - 1,).
        smallest: number of classes that count as small, those with the fewest voxels.
    """

    class_names: Sequence[str]
    voxels: np.ndarray
    dice: Mapping[str, np.ndarray]
    smallest: int = 5

    def __str__(self) -> str:
        order = np.argsort(self.voxels, kind="stable")[: self.smallest]
        rows = [["class", "voxels", *self.dice]]
        cells = zip(self.class_names[1:], self.voxels, zip(*self.dice.values()))
        rows += [[name, str(int(count)), *_texts(values)] for name, count, values in cells]
        rows.append(["mean", "", *_texts(nan_mean(values, axis=0) for values in self.dice.values())])
        if len(self.voxels) > self.smallest:
            means = (nan_mean(values[order], axis=0) for values in self.dice.values())
            rows.append([f"{self.smallest} smallest", "", *_texts(means)])
        return "\n".join(text_table(rows))


def _texts(values: Iterable[Any]) -> list[str]:
    return [number(float(value), 3) for value in values]
