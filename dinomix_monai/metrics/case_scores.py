"""Overlap and surface distance of every case and class."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_dice, compute_hausdorff_distance
from monai.networks import one_hot

from dinomix_monai.keys import MetricKeys

__all__ = ["CaseScores"]

_METRICS = (MetricKeys.DICE, MetricKeys.ASD, MetricKeys.HD95)


@dataclass
class CaseScores:
    """
    Dice, average symmetric surface distance and 95th percentile Hausdorff distance for each case and foreground class.

    A class that a case's label does not have is left out (NaN). Where the label has it and the prediction has nothing
    of it, it is missed: Dice is 0, and since it has no surface, its distances are left out and the miss is counted.

    Args:
        class_names: names by label value, background first.
    """

    class_names: Sequence[str]
    cases: list[str] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)

    def add(self, case: str, prediction: torch.Tensor, label: torch.Tensor, spacing_mm: Sequence[float]) -> None:
        """
        Scores a case.

        Args:
            case: its name.
            prediction: label map, shape (1, H, W[, D]).
            label: ground truth, same shape.
            spacing_mm: voxel size along each axis.

        Raises:
            ValueError: When the shapes differ.
        """
        if prediction.shape != label.shape:
            raise ValueError(
                f"prediction must have the shape of label {tuple(label.shape)}, got {tuple(prediction.shape)} ({case})."
            )
        prediction, label = (
            one_hot(x[None].long().cpu(), len(self.class_names), dtype=torch.uint8) for x in (prediction, label)
        )
        spacing = [float(side) for side in spacing_mm]  # MONAI refuses whole numbers beside others
        dice = compute_dice(prediction, label, include_background=False)
        with warnings.catch_warnings():
            # What MONAI says of each absent class; here it is counted instead.
            warnings.simplefilter("ignore")
            asd = compute_average_surface_distance(prediction, label, symmetric=True, spacing=spacing)
            hd95 = compute_hausdorff_distance(prediction, label, percentile=95, spacing=spacing)
        scores = torch.cat([dice, asd, hd95]).double().cpu().numpy()
        scores[1:][~np.isfinite(scores[1:])] = np.nan
        self.cases.append(case)
        self.scores.append(scores)

    def mean(self) -> dict[MetricKeys, np.ndarray]:
        """Mean over the cases for each class and metric, shape (num_classes - 1,); NaN where no case counts."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            means = np.nanmean(np.stack(self.scores), axis=0)
        return dict(zip(_METRICS, means))

    def missed(self) -> np.ndarray:
        """Number of cases that have a class and whose prediction does not, shape (num_classes - 1,)."""
        dice, asd = np.stack(self.scores)[:, :2].swapaxes(0, 1)
        # Dice alone does not tell: it is 0 as well for a prediction beside the organ, which has a surface.
        return ((dice == 0) & np.isnan(asd)).sum(0)

    def table(self) -> str:
        """Means for each class as text, with the mean over the classes as last line."""
        width = max(len(name) for name in ("class", *self.class_names[1:], "mean"))
        lines = [f"{'class':<{width}}   Dice   ASD mm  HD95 mm   missed in"]
        means = self.mean()
        columns = np.stack([means[metric] for metric in _METRICS], axis=1)
        present = (~np.isnan(np.stack(self.scores)[:, 0])).sum(0)
        for name, (dice, asd, hd95), missed, cases in zip(self.class_names[1:], columns, self.missed(), present):
            miss = f"{missed} of {cases}" if missed else ""
            lines.append(f"{name:<{width}}  {_number(dice, 5, 3)}  {_number(asd)}  {_number(hd95)}   {miss}".rstrip())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            dice, asd, hd95 = np.nanmean(columns, axis=0)
        lines.append(f"{'mean':<{width}}  {_number(dice, 5, 3)}  {_number(asd)}  {_number(hd95)}")
        return "\n".join(lines)

    def write_csv(self, path: str | Path) -> Path:
        """Writes a row for each case and class; an empty field is a value left out."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["case", "class", *_METRICS])
            for case, scores in zip(self.cases, self.scores):
                for name, values in zip(self.class_names[1:], scores.T):
                    writer.writerow([case, name, *("" if np.isnan(v) else f"{v:.4f}" for v in values)])
        return path


def _number(value: float, width: int = 7, digits: int = 2) -> str:
    return "-".rjust(width) if np.isnan(value) else f"{value:{width}.{digits}f}"
