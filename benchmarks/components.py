"""
How much of the variance of all volumes' tokens is kept by components that are found on a few of the volumes.

    python -m dinomix_monai cache_tokens --dataset_dir DIR --token_cache#folder TOKENS
    python benchmarks/components.py TOKENS

For each number of volumes the mean over some draws and the lowest of them; training finds the components on a tenth of
the volumes, four at least. TOKENS holds the tokens of one teacher and recipe.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import fire
import numpy as np


def main(
    token_dir: str, components: Sequence[int] = (8, 64), volumes: Sequence[int] = (2, 4, 8), draws: int = 5
) -> None:
    """Prints the table."""
    moments = [_moments(np.load(file)) for file in sorted(Path(token_dir).glob("*/*.npy"))]
    everything = _covariance(moments)
    numbers = [number for number in volumes if number < len(moments)]
    print(f"| components | {' | '.join(f'of {number} volumes' for number in numbers)} | of all {len(moments)} |")
    print(f"|{'---|' * (len(numbers) + 2)}")
    for k in components:
        cells = []
        for number in numbers:
            random_state = np.random.RandomState(0)
            samples = [random_state.choice(len(moments), number, replace=False) for _ in range(draws)]
            kept = [_kept(everything, _covariance([moments[i] for i in sample]), k) for sample in samples]
            cells.append(f"{100 * np.mean(kept):.2f} % ({100 * min(kept):.2f})")
        print(f"| {k} | {' | '.join(cells)} | {100 * _kept(everything, everything, k):.2f} % |")


def _moments(tokens: np.ndarray) -> np.ndarray:
    """Sums of the products of all channels, with a last channel of ones: of (h, w, d, C) tokens (C + 1, C + 1)."""
    vectors = np.pad(tokens.reshape(-1, tokens.shape[-1]).astype(float), ((0, 0), (0, 1)), constant_values=1)
    return vectors.T @ vectors


def _covariance(moments: Sequence[np.ndarray]) -> np.ndarray:
    mean = sum(moments) / sum(each[-1, -1] for each in moments)
    return mean[:-1, :-1] - np.outer(mean[-1, :-1], mean[-1, :-1])


def _kept(everything: np.ndarray, sample: np.ndarray, k: int) -> float:
    """Share of the variance of all tokens along the first ``k`` principal components of a sample."""
    directions = np.linalg.eigh(sample)[1][:, -k:]
    return float(np.trace(directions.T @ everything @ directions) / np.trace(everything))


if __name__ == "__main__":
    fire.Fire(main)
