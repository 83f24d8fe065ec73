"""The linear probe of a data set: fitted on its labeled scans, scored on others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils.enums import CommonKeys as Keys
from torch.nn import functional as F

from dinomix_monai.core.text import number, text_table
from dinomix_monai.metrics.nan_means import nan_mean
from dinomix_monai.networks import LinearProbe
from dinomix_monai.probe.point_features import PointFeatures, labels_at_points

__all__ = ["LabeledPoints", "OrganProbe", "ProbeTable", "cross_validated_dice", "gather_points", "point_dice"]

_LEAST_LOGIT = -1e4
_SLICES_AT_ONCE = 16


@dataclass(frozen=True)
class LabeledPoints:
    """
    Points of one scan.

    Args:
        features: shape (N, F).
        labels: class of each point, shape (N,).
    """

    features: torch.Tensor
    labels: torch.Tensor


def gather_points(features: PointFeatures, scan: Mapping[str, Any], num_slices: int) -> LabeledPoints:
    """
    Points in and beside the body, in slices that are spread evenly over a labeled scan.

    Args:
        features: gives the features of points.
        scan: ``image`` and ``label`` of shape (1, H, W, D) in RAS order, values of the image in [0, 1].
        num_slices: number of slices; all of a scan that has fewer.
    """
    image, depth = scan[Keys.IMAGE], scan[Keys.IMAGE].shape[-1]
    count = min(num_slices, depth)
    # The centers of equal parts, which for as many parts as slices are the slices.
    slices = [(2 * part + 1) * depth // (2 * count) for part in range(count)]
    in_body = features.in_body(image, slices)
    labels = labels_at_points(scan[Keys.LABEL], features.points(image), slices)
    return LabeledPoints(features(image, slices)[in_body].cpu(), labels[in_body].cpu())


def point_dice(found: torch.Tensor, labels: torch.Tensor, num_classes: int) -> np.ndarray:
    """
    Dice of each foreground class over points.

    Args:
        found: predicted class of each point, shape (N,).
        labels: true class of each point, shape (N,).
        num_classes: number of classes, background included.

    Returns:
        Shape (num_classes - 1,); NaN for a class that no point has.
    """
    counts = [torch.bincount(values, minlength=num_classes) for values in (found, labels, found[found == labels])]
    predicted, true, both = (count[1:num_classes].double().numpy() for count in counts)
    return np.where(true > 0, 2 * both / np.maximum(predicted + true, 1), np.nan)


def fit_probe(points: Sequence[LabeledPoints], num_classes: int) -> LinearProbe:
    """A probe of all these points."""
    features, labels = (torch.cat([getattr(some, name) for some in points]) for name in ("features", "labels"))
    return LinearProbe.fit(features, labels, num_classes)


def cross_validated_dice(scans: Sequence[LabeledPoints], num_classes: int) -> np.ndarray:
    """
    Dice of each class where every scan is predicted by a probe of the others.

    Args:
        scans: points of the labeled scans, two at least.
        num_classes: number of classes, background included.

    Returns:
        As :func:`point_dice`, over the points of all scans.

    Raises:
        ValueError: When there are fewer than two scans.
    """
    if len(scans) < 2:
        raise ValueError(f"scans must be two at least, got {len(scans)}. Label another scan, or choose by hand.")
    found = [
        fit_probe([*scans[:left_out], *scans[left_out + 1 :]], num_classes)(scan.features).argmax(-1)
        for left_out, scan in enumerate(scans)
    ]
    return point_dice(torch.cat(found), torch.cat([scan.labels for scan in scans]), num_classes)


@dataclass(frozen=True)
class OrganProbe:
    """
    A linear probe and the features that it takes.

    Args:
        features: gives the features of points.
        linear: gives the logits of features.
    """

    features: PointFeatures
    linear: LinearProbe

    @classmethod
    def fit(cls, features: PointFeatures, points: Sequence[LabeledPoints], num_classes: int) -> OrganProbe:
        """Fits the probe to points of labeled scans, whose features are of the same kind."""
        return cls(features, fit_probe(points, num_classes))

    def dice(self, scans: Sequence[LabeledPoints], num_classes: int) -> np.ndarray:
        """As :func:`point_dice`, over the points of all scans."""
        found = torch.cat([self.linear(scan.features).argmax(-1) for scan in scans])
        return point_dice(found, torch.cat([scan.labels for scan in scans]), num_classes)

    @torch.no_grad()
    def segment(self, image: MetaTensor, slices: Sequence[int] | None = None) -> torch.Tensor:
        """
        Classes of the voxels of a scan; logits are interpolated linearly between the points of a slice, and the air
        around the body is background.

        Args:
            image: shape (1, H, W, D) in RAS order, values in [0, 1].
            slices: indices along the last axis; ``None`` for all.

        Returns:
            Label map of shape (1, H, W, len(slices)), uint8, on the CPU.
        """
        wanted = list(range(image.shape[-1]) if slices is None else slices)
        labels = []
        # Some at once: each call looks for the body in the whole scan.
        for first in range(0, len(wanted), _SLICES_AT_ONCE):
            some = wanted[first : first + _SLICES_AT_ONCE]
            # A class that the probe has not seen has a logit of minus infinity, which does not interpolate.
            logits = self.linear(self.features(image, some)).clamp_min(_LEAST_LOGIT)
            logits[~self.features.in_body(image, some)] = torch.eye(logits.shape[-1], device=logits.device)[0]
            logits = logits.movedim(-1, 1)
            logits = F.interpolate(logits, tuple(image.shape[1:3]), mode="bilinear", align_corners=False)
            labels.append(logits.argmax(1).to("cpu", torch.uint8))
        return torch.cat(labels).movedim(0, -1)[None]


@dataclass(frozen=True)
class ProbeTable:
    """
    Dice of each class by what the probe was given.

    Args:
        class_names: names by label value, background first.
        points: number of labeled points of each foreground class, shape (classes - 1,).
        dice: for each kind of features, the Dice of each foreground class, shape (classes - 1,).
        smallest: number of classes that count as small, those with the fewest points.
    """

    class_names: Sequence[str]
    points: np.ndarray
    dice: Mapping[str, np.ndarray]
    smallest: int = 5

    def __str__(self) -> str:
        order = np.argsort(self.points, kind="stable")[: self.smallest]
        rows = [["class", "points", *self.dice]]
        cells = zip(self.class_names[1:], self.points, zip(*self.dice.values()))
        rows += [[name, str(int(count)), *_texts(values)] for name, count, values in cells]
        rows.append(["mean", "", *_texts(nan_mean(values, axis=0) for values in self.dice.values())])
        if len(self.points) > self.smallest:
            means = (nan_mean(values[order], axis=0) for values in self.dice.values())
            rows.append([f"{self.smallest} smallest", "", *_texts(means)])
        return "\n".join(text_table(rows))


def _texts(values: Iterable[Any]) -> list[str]:
    return [number(float(value), 3) for value in values]
