"""Differential privacy for what a site sends: clipped and noised, so that no single scan shows in it."""

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
    Clips the change of a round to a norm and adds Gaussian noise, over all weights together; a filter of results.

    It belongs to the job, or to the ``privacy.json`` of a site, where no job can take it away. NVFlare's own
    ``PercentilePrivacy`` clips each weight alone and adds no noise of known scale. Epsilon follows from
    ``noise_multiplier`` and the rounds by the usual accounting of the Gaussian mechanism, for the update of a site as a
    whole; nothing here accounts for it.

    Reference: McMahan et al., "Learning Differentially Private Recurrent Language Models", ICLR 2018,
    https://arxiv.org/abs/1710.06963.

    Args:
        clip_norm: largest L2 norm of the change.
        noise_multiplier: standard deviation of the noise over ``clip_norm``.

    Raises:
        ValueError: When ``clip_norm`` is not positive or ``noise_multiplier`` is negative, or, in a run, when whole
            weights are sent and not differences.
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
        Clips and noises an update; answers without weights are left as they are.

        An update that is not finite has no norm to clip, and is left out.
        """
        if dxo.data and dxo.data_kind == DataKind.WEIGHTS:
            raise ValueError("transfer must be 'difference' or 'half_difference' for GaussianPrivacy, got 'full'.")
        if dxo.data and not all(np.isfinite(value).all() for value in dxo.data.values()):
            self.log_warning(fl_ctx, "The update is not finite and is not sent.")
            dxo.data = {}
        if dxo.data:
            # From the system's entropy: noise that could be drawn again could be taken off again.
            dxo.data = clip_and_noise(dxo.data, self.clip_norm, self.noise_multiplier, np.random.default_rng())
        return dxo


def clip_and_noise(
    change: dict[str, Any], clip_norm: float, noise_multiplier: float, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """
    The change of all floating point weights, scaled to a norm if it is above it, with noise; others as they are.

    Args:
        change: arrays by name.
        clip_norm: see :class:`GaussianPrivacy`.
        noise_multiplier: see :class:`GaussianPrivacy`.
        generator: source of the noise.
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
