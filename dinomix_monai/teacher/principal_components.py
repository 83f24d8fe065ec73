"""Principal components of more vectors than memory holds."""

from __future__ import annotations

import torch

__all__ = ["PrincipalComponents"]

# So many vectors are in double precision at a time: of 4096 channels, 134 MB.
_PIECE = 4096


class PrincipalComponents:
    """
    Mean and covariance of vectors that come in portions, and the directions of largest variance.

    Sums are kept in double precision, so the order of the portions makes no visible difference. A portion may lie in a
    file that is mapped into memory: of its vectors a few thousand are looked at together, beside C x C numbers.

    Args:
        channels: length C of the vectors.

    Example:
        >>> import torch
        >>> from dinomix_monai.teacher import PrincipalComponents
        >>> components = PrincipalComponents(2)
        >>> components.update(torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]]))
        >>> mean, directions, kept = components.solve(1)
        >>> mean.tolist(), directions.abs().flatten().tolist(), round(kept, 4)
        ([2.0, 1.0], [1.0, 0.0], 1.0)
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self._sum = torch.zeros(channels, dtype=torch.float64)
        self._products = torch.zeros(channels, channels, dtype=torch.float64)

    def update(self, vectors: torch.Tensor) -> None:
        """
        Adds a portion.

        Args:
            vectors: shape (N, C), of any type.
        """
        self.count += len(vectors)
        for piece in vectors.split(_PIECE):
            piece = piece.double().cpu()
            self._sum += piece.sum(0)
            self._products += piece.T @ piece

    def solve(self, k: int) -> tuple[torch.Tensor, torch.Tensor, float]:
        """
        The ``k`` directions of largest variance.

        Returns:
            Mean of all vectors, shape (C,); directions as orthonormal columns, the largest variance first, shape
            (C, k); and the share of the variance that they keep, in [0, 1]. The first two in single precision.

        Raises:
            ValueError: When ``k`` is not between 1 and C, or no vector has been added.
        """
        if not 1 <= k <= len(self._sum):
            raise ValueError(f"k must be from 1 to the {len(self._sum)} channels of the vectors, got {k}.")
        if not self.count:
            raise ValueError("update must have been given vectors before solve, got none.")
        mean = self._sum / self.count
        variances, directions = torch.linalg.eigh(self._products / self.count - torch.outer(mean, mean))
        total = variances.clamp_min(0).sum()
        # Vectors that are all alike have no variance to lose.
        kept = float(variances[-k:].clamp_min(0).sum() / total) if total > 0 else 1.0
        return mean.float(), directions[:, -k:].flip(1).float(), kept
