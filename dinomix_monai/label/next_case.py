"""Which scan is worth the next hour of an annotator; arrays alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from dinomix_monai.transforms import class_probabilities

__all__ = ["dice_shortfall", "diverse_order", "expected_gain", "mean_entropy"]


def dice_shortfall(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """
    How far student and EMA teacher are from agreeing on each class: 1 minus their soft Dice.

    ``u_c = 1 - 2 sum(p_c q_c) / sum(p_c + q_c)`` over all voxels: the part of the Dice of class ``c`` that one would
    lose if the other drew the truth from its probabilities. It is 0 where both are sure of the same voxels, rises with
    the doubt of either and with their disagreement, and does not depend on the size of the class. A class that
    neither gives any probability has 0.

    Args:
        student: probabilities of the classes, shape (C, H, W[, D]).
        teacher: likewise.

    Returns:
        One number in [0, 1] for each class, shape (C,).
    """
    p, q = student.flatten(1).double(), teacher.flatten(1).double()
    mass = (p + q).sum(dim=1)
    agreement = 2 * (p * q).sum(dim=1) / mass.clamp_min(torch.finfo(mass.dtype).tiny)
    return torch.where(mass > 0, 1 - agreement, torch.zeros_like(mass))


def mean_entropy(probabilities: torch.Tensor) -> float:
    """Mean entropy of the voxels in nats, of probabilities of shape (C, H, W[, D]): the plain measure of doubt."""
    return float(torch.special.entr(probabilities.double()).sum(dim=0).mean())


def expected_gain(shortfalls: np.ndarray, counts: Sequence[float]) -> np.ndarray:
    """
    What labeling a scan may bring, with the classes weighted as PIC weights them at its beginning: heavy on the tail.

    Args:
        shortfalls: of each scan and foreground class, shape (N, C).
        counts: labeled voxels of each foreground class, shape (C,).

    Returns:
        One number in [0, 1] for each scan, shape (N,).

    Raises:
        ValueError: When there are not as many counts as classes.
    """
    shortfalls = np.asarray(shortfalls, dtype=float)
    if shortfalls.ndim != 2 or shortfalls.shape[1] != len(counts):
        raise ValueError(
            f"shortfalls must have shape (N, {len(counts)}), one class for each count, got {shortfalls.shape}."
        )
    return shortfalls @ class_probabilities(counts, progress=0.0)


def diverse_order(gains: np.ndarray, features: np.ndarray, known: np.ndarray | None = None) -> list[int]:
    """
    The scans in the order in which to label them: the most gain first, unless a scan is like one that came before.

    Greedily the scan with the greatest ``gain * (1 - similarity)`` is next. The similarity to the closest of the known
    and the chosen scans is ``exp(-d^2 / m^2)``, where ``d`` is the distance of their features, standardized over all
    scans, and ``m`` the median distance of all pairs. So of two scans that are the same, the second comes last.

    Args:
        gains: of each scan, shape (N,).
        features: of each scan, shape (N, F).
        known: features of the scans that are labeled already, shape (M, F).

    Returns:
        Indices of all N scans.

    Raises:
        ValueError: When the shapes do not go together.
    """
    gains, features = np.asarray(gains, dtype=float), np.asarray(features, dtype=float)
    known = np.zeros((0, *features.shape[1:])) if known is None else np.asarray(known, dtype=float)
    if features.ndim != 2 or len(features) != len(gains) or known.shape[1:] != features.shape[1:]:
        raise ValueError(
            f"features must have shape ({len(gains)}, F) and known (M, F), got {features.shape} and {known.shape}."
        )
    novelty = 1 - _similarity(np.concatenate([features, known]))
    remaining = list(range(len(gains)))
    seen = list(range(len(gains), len(gains) + len(known)))
    order: list[int] = []
    while remaining:
        scores = [gains[i] * novelty[i, seen].min(initial=1.0) for i in remaining]
        order.append(remaining.pop(int(np.argmax(scores))))
        seen.append(order[-1])
    return order


def _similarity(features: np.ndarray) -> np.ndarray:
    spread = features.std(axis=0)
    standard = (features - features.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    distances = np.linalg.norm(standard[:, None] - standard[None], axis=-1)
    pairs = distances[np.triu_indices(len(distances), k=1)]
    median = np.median(pairs) if len(pairs) else 0.0
    # All the same: then gain alone decides.
    return np.exp(-((distances / median) ** 2)) if median > 0 else np.zeros_like(distances)
