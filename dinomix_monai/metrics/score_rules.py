"""The rules by which a case is scored, each under a name that stands for one exact definition."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from monai.metrics import (
    compute_average_surface_distance,
    compute_dice,
    compute_hausdorff_distance,
    compute_surface_dice,
)
from monai.transforms.utils import generate_spatial_bounding_box
from monai.utils import StrEnum, ensure_tuple
from torch.nn import functional as F

from dinomix_monai.core.keys import MetricKeys
from dinomix_monai.core.known_voxels import is_known

__all__ = ["GALossRule", "Metric", "Outcome", "PublishedRule", "ScoreRule", "SoundRule", "chosen_rules", "score_rule"]


class Outcome(StrEnum):
    """What became of a class in a case: which of label and prediction have a voxel of it."""

    FOUND = "found"  # both
    MISSED = "missed"  # the label alone
    INVENTED = "invented"  # the prediction alone
    ABSENT = "absent"  # neither
    NOT_ANNOTATED = "not annotated"  # nobody has looked for it, or not everywhere and found none


class Metric(NamedTuple):
    """A metric of a rule: its column in files, its heading in tables, and the decimals that it is shown with."""

    key: MetricKeys
    heading: str
    decimals: int


class ScoreRule(ABC):
    """
    How label and prediction of a case become numbers.

    A class that both have is measured; what the other outcomes are worth is the rule's decision.

    Attributes:
        name: what files, tables and settings call it.
        summary: the rule in a line.
        metrics: what it measures, Dice first.
        full_dice: Dice of a perfect prediction, 1 or 100.
        on_scans: whether it scores on the scans that a prepared data set was made of, where they are at hand.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    full_dice: ClassVar[float]
    on_scans: ClassVar[bool] = False

    def __call__(
        self,
        prediction: torch.Tensor,
        label: torch.Tensor,
        spacing_mm: Sequence[float],
        num_classes: int,
        possible: np.ndarray | None = None,
    ) -> tuple[list[Outcome], np.ndarray]:
        """
        Scores a case.

        Args:
            prediction: label map, shape (1, H, W[, D]).
            label: ground truth, same shape.
            spacing_mm: voxel size along each axis.
            num_classes: with background.
            possible: for each value of a label, which classes it stands for, see
                :meth:`dinomix_monai.volumes.PartialLabels.table`; ``None`` where the label is complete. A class is
                scored in the voxels of which the label tells whether they have it. Where these are not all, it has its
                Dice alone, because a part of a surface has no distance, and nothing where it is drawn nowhere.

        Returns:
            outcome of each foreground class, and scores of shape (metrics, num_classes - 1); NaN is a value left out.
        """
        prediction, label = self.on_grid(prediction), self.on_grid(label)
        spacing = [float(side) for side in spacing_mm]  # MONAI refuses whole numbers beside others
        diagonal_mm = math.hypot(*np.multiply(spacing, label.shape[1:]))
        outcomes, scores = [], []
        for value in range(1, num_classes):
            masks = prediction == value, label == value
            known = None if possible is None else is_known(label, value, possible)
            # Drawn nowhere, and in places nobody has looked for it.
            if known is not None and not known.all() and not masks[1].any():
                outcomes.append(Outcome.NOT_ANNOTATED)
                scores.append([math.nan] * len(self.metrics))
                continue
            if known is not None:
                masks = masks[0] & known, masks[1]
            outcome = _OUTCOMES[bool(masks[0].any()), bool(masks[1].any())]
            found = outcome is Outcome.FOUND
            outcomes.append(outcome)
            with warnings.catch_warnings():
                # MONAI uses an argument that it has deprecated itself.
                warnings.simplefilter("ignore", FutureWarning)
                values = self.measure(*_cropped(*masks), spacing) if found else self.unmatched(outcome, diagonal_mm)
            if known is not None and not known.all():
                values = [values[0], *[math.nan] * (len(values) - 1)]
            scores.append(values)
        return outcomes, self.of_case(outcomes, np.array(scores, dtype=float).T)

    def of_case(self, outcomes: Sequence[Outcome], scores: np.ndarray) -> np.ndarray:
        """The scores of a case, shape (metrics, classes), once all of its classes are known; as they are by default."""
        return scores

    def on_grid(self, labels: torch.Tensor) -> torch.Tensor:
        """The label map (1, H, W[, D]) on the grid that the rule scores on: its own, unless a rule says otherwise."""
        return labels

    @abstractmethod
    def measure(self, prediction: torch.Tensor, label: torch.Tensor, spacing_mm: Sequence[float]) -> list[float]:
        """Scores of a class from its masks, each (1, 1, H, W[, D]) and not empty."""

    @abstractmethod
    def unmatched(self, outcome: Outcome, diagonal_mm: float) -> list[float]:
        """Scores of a class that label or prediction lacks, in an image of this diagonal."""


class SoundRule(ScoreRule):
    """
    Dice, NSD at 2 mm, ASSD and HD95 on the label's own grid, with distances in mm.

    A class that the label lacks is left out, whatever was predicted. A missed class has Dice and NSD 0 and, as both
    distances, the diagonal of the image, which no distance in it exceeds: leaving them out would reward the miss.

    The surface of ASSD and HD95 are a mask's voxels with a face neighbor outside of it. ASSD is the mean of the
    distances of both surfaces' voxels, pooled; HD95 the greater of the 95th percentiles of either direction. NSD, the
    share of both surfaces within 2 mm of the other, weighs each surface element by its area, after Nikolov et al.,
    "Clinically applicable segmentation of head and neck anatomy for radiotherapy", 2021, https://arxiv.org/abs/1809.04430.
    """

    name = "sound"
    summary = "on each label's own grid, in mm; absent classes left out, missed ones at Dice 0 and the image's diagonal"
    metrics = (
        Metric(MetricKeys.DICE, "Dice", 3),
        Metric(MetricKeys.NSD, "NSD 2mm", 3),
        Metric(MetricKeys.ASSD, "ASSD mm", 2),
        Metric(MetricKeys.HD95, "HD95 mm", 2),
    )
    full_dice = 1
    on_scans = True

    def measure(self, prediction: torch.Tensor, label: torch.Tensor, spacing_mm: Sequence[float]) -> list[float]:
        """Scores of a class from its masks."""
        surfaces: Any = {"include_background": True, "spacing": spacing_mm}
        scores = [
            compute_dice(prediction, label, include_background=True),
            compute_surface_dice(prediction, label, [2.0], use_subvoxels=True, **surfaces),
            compute_average_surface_distance(prediction, label, symmetric=True, **surfaces),
            compute_hausdorff_distance(prediction, label, percentile=95, **surfaces),
        ]
        return [float(score) for score in scores]

    def unmatched(self, outcome: Outcome, diagonal_mm: float) -> list[float]:
        """Worst scores for a missed class; nothing for one that the label lacks."""
        return [0, 0, diagonal_mm, diagonal_mm] if outcome is Outcome.MISSED else [math.nan] * 4


class PublishedRule(ScoreRule):
    """
    Dice in percent and one-directional ASD in voxels, as DHC, GenericSSL and SKCDF score Synapse and AMOS.

    Both label maps are resized to 160 x 160 x 80 voxels (nearest neighbor, along the axes as stored), which leaves
    those of that size as they are. ASD is the mean distance of the prediction's surface voxels to the label's surface;
    the way back does not count. A class that only one of both has scores 0 and 128, one that neither has 1 and 0, which
    on the scale of 0 to 100 is a miss. Every class of every case counts.
    """

    name = "published"
    summary = "on 160 x 160 x 80 voxels; a class in label or prediction alone has scores 0 and 128, in neither 1 and 0"
    metrics = (Metric(MetricKeys.DICE_PERCENT, "Dice %", 2), Metric(MetricKeys.ASD_VOXELS, "ASD voxels", 2))
    full_dice = 100
    absent_dice: ClassVar[float] = 1
    size: ClassVar[tuple[int, int, int]] = (160, 160, 80)

    def on_grid(self, labels: torch.Tensor) -> torch.Tensor:
        """
        The label map, resized.

        Raises:
            ValueError: When it is not a volume.
        """
        if labels.ndim != 4:
            raise ValueError(
                f"label must be a volume (1, H, W, D) for the {self.name} rule, got {tuple(labels.shape)}. "
                "Score slices by the sound rule."
            )
        return F.interpolate(labels[None].float(), size=self.size, mode="nearest")[0]

    def measure(self, prediction: torch.Tensor, label: torch.Tensor, spacing_mm: Sequence[float]) -> list[float]:
        """Scores of a class from its masks; voxels count as cubes of side 1."""
        dice = compute_dice(prediction, label, include_background=True)
        return [100 * float(dice), float(compute_average_surface_distance(prediction, label, include_background=True))]

    def unmatched(self, outcome: Outcome, diagonal_mm: float) -> list[float]:
        """Fixed values."""
        return [self.absent_dice, 0] if outcome is Outcome.ABSENT else [0, 128]


class GALossRule(PublishedRule):
    """
    The published rule as GALoss has it.

    A class that neither label nor prediction has scores 100 and 0, a success. In a case in which nothing at all was
    predicted, every class scores 0 and 0, so that its distances are perfect.
    """

    name = "galoss"
    summary = "as published, but a class in neither has 100 and 0, each class of a case with nothing predicted 0 and 0"
    absent_dice = 100

    def of_case(self, outcomes: Sequence[Outcome], scores: np.ndarray) -> np.ndarray:
        """All 0 where nothing was predicted; what is left out stays so."""
        predicted = {Outcome.FOUND, Outcome.INVENTED}.intersection(outcomes)
        return scores if predicted else 0 * scores


def score_rule(name: str) -> ScoreRule:
    """
    The rule of a name.

    Raises:
        ValueError: When there is none.

    Example:
        >>> score_rule("published").metrics[1].key.value
        'asd_voxels'
    """
    if name not in _RULES:
        raise ValueError(f"score rule must be one of {', '.join(_RULES)}, got {name!r}.")
    return _RULES[name]


def chosen_rules(names: Sequence[str] | str) -> list[ScoreRule]:
    """
    The rules of some names.

    Raises:
        ValueError: When there is no name, or no such rule.
    """
    rules = [score_rule(name) for name in ensure_tuple(names)]
    if not rules:
        raise ValueError("rules must name at least one rule to score by, got none.")
    return rules


def _cropped(prediction: torch.Tensor, label: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks (1, H, W[, D]) cut to the box around both, as batches of one; for speed, scores stay the same."""
    corners = generate_spatial_bounding_box(prediction | label)
    box = (None, slice(None), *map(slice, *corners))
    return prediction[box], label[box]


_OUTCOMES = {
    # prediction, label
    (True, True): Outcome.FOUND,
    (False, True): Outcome.MISSED,
    (True, False): Outcome.INVENTED,
    (False, False): Outcome.ABSENT,
}
_RULES: dict[str, ScoreRule] = {rule.name: rule for rule in (SoundRule(), PublishedRule(), GALossRule())}
