"""The order in which to label scans; arrays and names alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dinomix_monai.data import case_name, patient_name

__all__ = ["NextScan", "rank_scans"]

# Of the median distance of two scans. Patients of Synapse are 0.58 of it apart at the least, and those of the phantom
# that have similar bodies and one scanner 0.33 to 0.50.
_ALIKE = 0.45


@dataclass(frozen=True)
class NextScan:
    """
    A scan to label next.

    Args:
        name: its name.
        reason: why, as the rest of a sentence.
    """

    name: str
    reason: str


def rank_scans(
    thumbnails: Mapping[str, np.ndarray], labeled: Sequence[str], root: Path, count: int, seed: int = 0
) -> list[NextScan]:
    """
    Puts scans without a label into an order: by chance, but nearly the same scan and the same patient never again.

    A hash of its name and of the seed is the lot of a scan, so that the order of the others stays when one is labeled
    or added. A scan whose thumbnail is nearly that of one before, labeled or named, comes after all others, and so does
    a scan of the same patient.

    Args:
        thumbnails: of all scans, labeled or not, by name, of one shape.
        labeled: names of those that have a label.
        root: folder of the data set, from which names tell patients.
        count: how many to rank at most.
        seed: of the lots.

    Returns:
        Scans without a label, the next one first.
    """
    names = list(thumbnails)
    alike = _alike(np.stack([thumbnails[name].ravel() for name in names]).astype(float))
    patients = [patient_name(root / name, root) for name in names]
    seen = [names.index(name) for name in labeled]
    remaining = sorted(set(range(len(names))) - set(seen), key=lambda scan: (_lot(names[scan], root, seed), scan))
    ranked: list[NextScan] = []
    while remaining and len(ranked) < count:
        earlier = {scan: _earlier(scan, seen, alike, patients) for scan in remaining}
        chosen = next((scan for scan in remaining if earlier[scan] is None), remaining[0])
        like = earlier[chosen]
        reason = f"drawn by lot of {len(remaining)} scans, and unlike those labeled or named before"
        if like is not None:
            what = "of the same patient as" if patients[like] == patients[chosen] else "nearly the same as"
            reason = f"after all others, because it is {what} {names[like]}"
        ranked.append(NextScan(names[chosen], reason))
        seen.append(chosen)
        remaining.remove(chosen)
    return ranked


def _lot(name: str, root: Path, seed: int) -> str:
    return hashlib.sha256(f"{seed} {case_name(root / name, root)}".encode()).hexdigest()


def _earlier(scan: int, seen: Sequence[int], alike: np.ndarray, patients: Sequence[str]) -> int | None:
    """The first scan before that is nearly the same, or of the same patient."""
    return next((one for one in seen if alike[scan, one] or patients[scan] == patients[one]), None)


def _alike(thumbnails: np.ndarray) -> np.ndarray:
    """Whether two scans are nearly the same, shape (N, N), of thumbnails (N, F)."""
    distances = np.linalg.norm(thumbnails[:, None] - thumbnails[None], axis=-1)
    pairs = distances[np.triu_indices(len(distances), k=1)]
    return distances <= _ALIKE * (np.median(pairs) if len(pairs) else 0.0)
