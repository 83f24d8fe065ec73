"""The curriculum of PIC: rare classes are pasted most often at first, and all classes equally often at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

__all__ = ["ClassCurriculum", "class_probabilities", "imbalance"]


def class_probabilities(
    counts: Sequence[float] | np.ndarray,
    progress: float,
    beta: float = 0.5,
    curriculum: float = 1.0,
    gamma: float = 1.0,
) -> np.ndarray:
    r"""
    The probability with which each foreground class is drawn to be pasted.

    .. math::
        q_c = \frac{(1 / (n_c + 1))^\beta}{\sum_k (1 / (n_k + 1))^\beta} \qquad
        s = \min(\mathrm{progress} / \mathrm{curriculum}, 1)^\gamma \qquad
        p_c = (1 - s) \, q_c + s / C

    At the start of the training (``s = 0``) the rarest class is the most probable one; when the curriculum is over
    (``s = 1``) all ``C`` classes are equally probable.

    Reference: Liu and Sun, "DINO-Mix", 2026, https://arxiv.org/abs/2602.07819.

    Args:
        counts: number of voxels ``n_c`` of each foreground class, shape (C,).
        progress: steps done divided by steps planned, in [0, 1].
        beta: strength of the preference for rare classes, >= 0; with 0 all classes are equally probable throughout.
        curriculum: progress from which on the classes are equally probable, > 0.
        gamma: exponent of the way there, > 0; with 1 the probabilities change linearly.

    Returns:
        Probabilities ``p_c`` that sum to 1, shape (C,).
    """
    rare_first = (1.0 / (np.asarray(counts, dtype=float) + 1.0)) ** beta
    rare_first /= rare_first.sum()
    s = min(progress / curriculum, 1.0) ** gamma
    return (1 - s) * rare_first + s / len(rare_first)


def imbalance(counts: Sequence[float] | np.ndarray) -> float:
    r"""
    How unevenly the voxels are spread over the foreground classes: 1 minus the normalized entropy of their shares.

    .. math::
        1 + \frac{1}{\log C} \sum_c \frac{n_c}{n} \log \frac{n_c}{n}, \qquad n = \sum_c n_c

    Args:
        counts: number of voxels ``n_c`` of each foreground class, shape (C,).

    Returns:
        A number in [0, 1]: 0 for classes of equal size, 1 where one class has all the voxels. With fewer than two
        classes, or without any voxel, it is 0.
    """
    shares = np.asarray(counts, dtype=float)
    if len(shares) < 2 or shares.sum() == 0:
        return 0.0
    shares = shares[shares > 0] / shares.sum()
    # Rounding may leave equal shares a little below 0.
    return max(0.0, float(1 + (shares * np.log(shares)).sum() / np.log(len(counts))))


class ClassCurriculum:
    """
    Keeps the voxel counts of the classes and the progress of the training, and gives the class probabilities for both.

    Donors with ground truth are drawn by the voxels of the labeled set, which do not change. Donors with pseudo-labels
    are drawn by a moving average of the confident pseudo-labeled voxels of a patch, which starts at 0.

    Args:
        labeled_counts: number of voxels of each class in the labeled set, background first.
        beta: see :func:`class_probabilities`.
        curriculum: see :func:`class_probabilities`.
        gamma: see :func:`class_probabilities`.
        count_decay: decay of the moving average for each pseudo-labeled patch.

    Attributes:
        labeled_counts: number of voxels of each class in the labeled set, background first, shape (num_classes,).
        unlabeled_counts: moving average of the pseudo-labeled voxels of each class, same order and shape.
        progress: steps done divided by steps planned, in [0, 1]; it is set from outside.

    Raises:
        ValueError: When ``labeled_counts``, ``beta``, ``curriculum`` or ``gamma`` is outside its range.
    """

    def __init__(
        self,
        labeled_counts: Sequence[float],
        beta: float = 0.5,
        curriculum: float = 1.0,
        gamma: float = 1.0,
        count_decay: float = 0.99,
    ) -> None:
        if len(labeled_counts) < 2 or min(labeled_counts) < 0:
            raise ValueError(
                f"labeled_counts must list >= 0 voxels for background and each class, got {labeled_counts}. Pass one "
                "number for each label value, as Datalist.training_voxels does."
            )
        if curriculum <= 0 or gamma <= 0 or beta < 0:
            raise ValueError(
                f"curriculum and gamma must be > 0 and beta >= 0, got {curriculum}, {gamma} and {beta}. Pass beta=0 "
                "for classes that are equally probable from the first step on."
            )
        self.labeled_counts = np.asarray(labeled_counts, dtype=float)
        self.unlabeled_counts = np.zeros_like(self.labeled_counts)
        self.progress = 0.0
        self.beta, self.curriculum, self.gamma = beta, curriculum, gamma
        self.count_decay = count_decay

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.labeled_counts)

    def probabilities(self, labeled: bool) -> np.ndarray:
        """
        The probability of each foreground class at the present progress.

        Args:
            labeled: whether the class is drawn for a donor with ground truth or for one with pseudo-labels.

        Returns:
            Probabilities that sum to 1, shape (num_classes - 1,).
        """
        counts = self.labeled_counts if labeled else self.unlabeled_counts
        return class_probabilities(counts[1:], self.progress, self.beta, self.curriculum, self.gamma)

    def count_unlabeled_patch(self, voxels: np.ndarray) -> None:
        """
        Takes a pseudo-labeled patch into the moving average.

        Args:
            voxels: number of confident voxels of each class in the patch, background first, shape (num_classes,).
        """
        self.unlabeled_counts += (1 - self.count_decay) * (voxels - self.unlabeled_counts)

    def state_dict(self) -> dict[str, Any]:
        """Progress and counts as plain numbers."""
        return {
            "progress": self.progress,
            "labeled_counts": self.labeled_counts.tolist(),
            "unlabeled_counts": self.unlabeled_counts.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` gave."""
        self.progress = float(state["progress"])
        self.labeled_counts = np.asarray(state["labeled_counts"], dtype=float)
        self.unlabeled_counts = np.asarray(state["unlabeled_counts"], dtype=float)
