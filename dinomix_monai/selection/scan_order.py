"""The order in which to label scans, by what they look like; arrays alone."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.cluster.vq import kmeans, kmeans2, vq

from dinomix_monai.teacher import PrincipalComponents

__all__ = ["ScanChoice", "choose_scans"]

_COMPONENTS, _WORDS, _SEED = 64, 96, 0
_NEIGHBORS = 5
# Of the median distance of two scans: patients of Synapse are 0.44 of it apart at the least.
_ALIKE = 0.25


@dataclass(frozen=True)
class ScanChoice:
    """
    A scan to label next, and why.

    Args:
        scan: its index.
        cluster_size: number of scans that look like it, itself included.
        seen: how many of these are labeled or chosen before.
        like: index of an earlier scan, labeled or chosen, that is nearly the same or of the same patient; ``None``
            where there is none.
    """

    scan: int
    cluster_size: int
    seen: int
    like: int | None = None


def choose_scans(
    looks: Sequence[torch.Tensor], labeled: Sequence[int], count: int, patients: Sequence[str] | None = None
) -> list[ScanChoice]:
    """
    Chooses scans without a label, each the most typical one of a kind that has none yet.

    This is TypiClust. A scan is described by how often each of 96 visual words occurs in it, the square roots of their
    shares; the words are clusters of all scans' tokens. Scans are put into as many clusters as there will be labels.
    One comes next from the largest cluster of those with the fewest labeled or chosen scans: the one with the least
    mean distance to its five nearest neighbors. A scan that is nearly the same as one before, or of the same patient,
    comes after all others. The same looks give the same choices.

    Reference: Hacohen, Dekel and Weinshall, "Active Learning on a Budget: Opposite Strategies Suit High and Low
    Budgets", ICML 2022, https://arxiv.org/abs/2202.02794.

    Args:
        looks: tokens of each scan, labeled or not, shape (N, C) each.
        labeled: indices of those that have a label.
        count: how many to choose at most.
        patients: the patient of each scan; ``None`` where every scan is of another one.

    Returns:
        The choices, the next one first.
    """
    descriptors = _word_shares(looks) ** 0.5
    distances = np.linalg.norm(descriptors[:, None] - descriptors[None], axis=-1)
    spread = np.sort(distances, axis=1)[:, 1 : _NEIGHBORS + 1].sum(axis=1)
    alike = _alike(distances, patients)
    clusters = _clusters(descriptors, min(len(looks), len(labeled) + count))
    sizes = np.bincount(clusters)
    seen, remaining = list(labeled), sorted(set(range(len(looks))) - set(labeled))
    choices: list[ScanChoice] = []
    while remaining and len(choices) < count:
        candidates = [scan for scan in remaining if not alike[scan, seen].any()] or remaining
        covered = np.bincount(clusters[seen], minlength=len(sizes))
        chosen = min(candidates, key=lambda i: (covered[clusters[i]], -sizes[clusters[i]], clusters[i], spread[i]))
        like = next((scan for scan in seen if alike[chosen, scan]), None)
        choices.append(ScanChoice(chosen, int(sizes[clusters[chosen]]), int(covered[clusters[chosen]]), like))
        seen.append(chosen)
        remaining.remove(chosen)
    return choices


def _word_shares(looks: Sequence[torch.Tensor]) -> np.ndarray:
    """Shares of the visual words in the tokens of each scan, shape (N, words)."""
    components = PrincipalComponents(looks[0].shape[1])
    for look in looks:
        components.update(look)
    mean, directions, _ = components.solve(min(_COMPONENTS, looks[0].shape[1]))
    reduced = [((look.float() - mean) @ directions).numpy() for look in looks]
    # As many as twenty scans have, however many there are.
    # Air has the same token everywhere.
    tokens = np.unique(np.concatenate(reduced)[:: max(1, len(looks) // 20)], axis=0)
    with warnings.catch_warnings():
        # Of a word that no token is nearest to, which then occurs nowhere.
        warnings.filterwarnings("ignore", "One of the clusters is empty")
        words, _ = kmeans2(tokens, min(_WORDS, len(tokens)), iter=20, minit="++", seed=_SEED)
    counts = np.stack([np.bincount(vq(own, words)[0], minlength=len(words)) for own in reduced])
    return counts / counts.sum(axis=1, keepdims=True)


def _clusters(descriptors: np.ndarray, number: int) -> np.ndarray:
    """The cluster of each scan, by the best of twenty beginnings, shape (N,)."""
    centers, _ = kmeans(descriptors, number, iter=20, seed=_SEED)
    return vq(descriptors, centers)[0]


def _alike(distances: np.ndarray, patients: Sequence[str] | None) -> np.ndarray:
    """Whether two scans are nearly the same, or of one patient, shape (N, N)."""
    pairs = distances[np.triu_indices(len(distances), k=1)]
    found = distances <= _ALIKE * (np.median(pairs) if len(pairs) else 0.0)
    names = np.array(patients if patients is not None else range(len(distances)))
    return found | (names[:, None] == names[None])
