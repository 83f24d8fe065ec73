"""Names that data, trainer, handlers and reports share."""

from __future__ import annotations

from monai.utils import StrEnum

__all__ = ["BatchKeys", "LossKeys", "MetricKeys", "StepKeys"]


class BatchKeys(StrEnum):
    """
    Entries of a batch beyond MONAI's ``CommonKeys`` (``image``, ``label``, ``pred``).

    ``STRONG`` is the intensity-augmented view of ``image``; ``WEIGHT`` the weight of each voxel's label; ``LABELED``
    tells for each sample whether its label is ground truth; ``POSITION`` where in its volume it lies; ``VOLUME`` is the
    number of that volume in the token cache, and ``SOURCE`` the volume and position of each voxel.
    """

    IMAGE = "image"
    LABEL = "label"
    STRONG = "strong"
    WEIGHT = "weight"
    LABELED = "labeled"
    POSITION = "position"
    VOLUME = "volume"
    SOURCE = "source"


class LossKeys(StrEnum):
    """Terms of the loss in ``engine.state.output``, each unweighted; their weighted sum is MONAI's ``loss``."""

    SUPERVISED = "supervised"
    UNSUPERVISED = "unsupervised"
    DISTILLATION = "distillation"


class StepKeys(StrEnum):
    """
    Other numbers in ``engine.state.output``.

    ``CONFIDENT_SHARE`` is the share of the unlabeled voxels whose pseudo-label counts, and ``GRADIENT_NORM`` the norm
    of the gradient before it is clipped.
    """

    CONFIDENT_SHARE = "confident_share"
    GRADIENT_NORM = "gradient_norm"


class MetricKeys(StrEnum):
    """
    Metric names. ``KEY`` is the one that chooses the best model, here and in a federation.

    The others are columns of ``metrics.csv``, with their units; each rule of scoring has its own.
    """

    KEY = "val_mean_dice"
    DICE = "dice"
    NSD = "nsd_2mm"
    ASSD = "assd_mm"
    HD95 = "hd95_mm"
    DICE_PERCENT = "dice_percent"
    ASD_VOXELS = "asd_voxels"
