"""Differential privacy for updates: a filter that clips and noises what a site sends after a round."""

from __future__ import annotations

from typing import Any

import numpy as np
from nvflare.apis.dxo import DXO, DataKind
from nvflare.apis.dxo_filter import DXOFilter
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable

__all__ = ["GaussianPrivacy", "clip_and_noise"]


class GaussianPrivacy(DXOFilter):
    """
    Clips the change of a round to an L2 norm over all weights together, and adds Gaussian noise to each weight.

    This is a filter of task results. A job may bring it, or a site lists it in its own ``local/privacy.json``, where no
    job can take it away. NVFlare's own ``PercentilePrivacy`` clips each weight by itself and adds no noise of a known
    scale. Epsilon follows from ``noise_multiplier`` and the number of rounds by the accounting of the Gaussian
    mechanism, for the update of a site as a whole; this class does not account for it.

    Reference: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018,
    https://arxiv.org/abs/1710.06963.

    Args:
        clip_norm: largest L2 norm of the change.
        noise_multiplier: standard deviation of the noise, divided by ``clip_norm``.

    Raises:
        ValueError: When ``clip_norm`` is not positive or ``noise_multiplier`` is negative; in a run, when an update
            holds the weights themselves and not their change.
    """

    def __init__(self, clip_norm: float, noise_multiplier: float = 0.0) -> None:
        super().__init__(
            supported_data_kinds=[DataKind.WEIGHT_DIFF, DataKind.WEIGHTS],
            data_kinds_to_filter=[DataKind.WEIGHT_DIFF, DataKind.WEIGHTS],
        )
        if not clip_norm > 0 or noise_multiplier < 0:
            raise ValueError(
                f"clip_norm must be > 0 and noise_multiplier >= 0, got {clip_norm} and {noise_multiplier}."
            )
        self.clip_norm = clip_norm
        self.noise_multiplier = noise_multiplier

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """
        Clips and noises an update. A reply without weights passes as it is.

        An update with a value that is not finite has no norm to clip to, so its weights are not sent.
        """
        if dxo.data and dxo.data_kind == DataKind.WEIGHTS:
            raise ValueError("transfer must be 'difference' or 'half_difference' for GaussianPrivacy, got 'full'.")
        if dxo.data and not all(np.isfinite(value).all() for value in dxo.data.values()):
            self.log_warning(fl_ctx, "The update is not finite and is not sent.")
            dxo.data = {}
        if dxo.data:
            # The generator is seeded by the operating system: whoever could draw the noise again could subtract it.
            dxo.data = clip_and_noise(dxo.data, self.clip_norm, self.noise_multiplier, np.random.default_rng())
        return dxo


def clip_and_noise(
    change: dict[str, Any], clip_norm: float, noise_multiplier: float, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """
    Scales a change down to a norm if its own norm is larger, and adds Gaussian noise.

    Args:
        change: arrays by name, of any shapes. Those of whole numbers are returned as they are and do not count in the
            norm.
        clip_norm: see :class:`GaussianPrivacy`.
        noise_multiplier: see :class:`GaussianPrivacy`.
        generator: source of the noise.

    Returns:
        Arrays of the same names, shapes and types.

    Example:
        >>> change = {"w": np.array([3.0, 4.0])}
        >>> clip_and_noise(change, clip_norm=1.0, noise_multiplier=0.0, generator=np.random.default_rng(0))["w"]
        array([0.6, 0.8])
    """
    arrays = {name: np.asarray(value) for name, value in change.items()}
    floating = [name for name, value in arrays.items() if value.dtype.kind == "f"]
    norm = float(np.sqrt(sum((arrays[name].astype(np.float64) ** 2).sum() for name in floating)))
    scale = min(1.0, clip_norm / norm) if norm else 1.0
    for name in floating:
        value = arrays[name]
        noise = generator.normal(0.0, noise_multiplier * clip_norm, value.shape)
        arrays[name] = (value * scale + noise).astype(value.dtype)
    return arrays
