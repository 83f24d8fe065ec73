"""FedAvgM: how the server moves the global model by the average of the sites' updates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["ServerOptimizer"]

# A step beyond the average of these statistics would make variances negative.
_RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


class ServerOptimizer:
    """
    SGD with momentum on the average change of the sites (FedAvgM). With the defaults it is plain averaging.

    ``v = momentum * v + change`` and ``w = w + learning_rate * v``. Running statistics of normalization layers are
    averaged and nothing more.

    NVFlare's own FedOpt (2.9) does not serve. Its controller, ``nvflare.app_opt.pt.fedopt_ctl.FedOpt``, takes every
    average for a difference, also one of whole weights, and moves a module beside the persistor, which never gets the
    weights of a checkpoint, so no run could go on from one. Its ``PTFedOptModelShareableGenerator`` refuses whole
    weights, and is called by workflows such as ``ScatterAndGather`` and never by ``FedAvg``.

    Reference: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295; Hsu et al.,
    "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification", 2019,
    https://arxiv.org/abs/1909.06335.

    Args:
        learning_rate: share of the average change that is taken.
        momentum: share of the last step that is taken again.

    Attributes:
        velocity: what momentum has gathered, by the name of the weight.

    Raises:
        ValueError: When ``learning_rate`` is not positive or ``momentum`` is not in [0, 1).

    Example:
        >>> optimizer = ServerOptimizer(learning_rate=0.5)
        >>> optimizer.step({"w": np.array([1.0])}, {"w": np.array([0.4])}, is_difference=True)["w"]
        array([1.2])
    """

    def __init__(self, learning_rate: float = 1.0, momentum: float = 0.0) -> None:
        if not learning_rate > 0 or not 0 <= momentum < 1:
            raise ValueError(f"learning_rate must be > 0 and momentum in [0, 1), got {learning_rate} and {momentum}.")
        self.learning_rate, self.momentum = learning_rate, momentum
        self.velocity: dict[str, np.ndarray] = {}

    def step(
        self, model: Mapping[str, np.ndarray], average: Mapping[str, np.ndarray], is_difference: bool
    ) -> dict[str, np.ndarray]:
        """
        Moves the global model by one step.

        Args:
            model: weights of the global model by name.
            average: average of the sites' updates. A weight that no site has sent is missing here and stays as it is.
            is_difference: whether the updates hold the change of the weights and not the weights themselves.

        Returns:
            The weights of the next global model, each in the type that it has in the present one.
        """
        moved = dict(model)
        for name, value in average.items():
            present = np.asarray(model[name])
            change = np.asarray(value, dtype=np.float64) - (0.0 if is_difference else present)
            if not name.endswith(_RUNNING_STATISTICS):
                if self.momentum:
                    change = self.velocity[name] = change + self.momentum * self.velocity.get(name, 0.0)
                change = self.learning_rate * change
            weight = present + change
            moved[name] = (weight.round() if present.dtype.kind in "iu" else weight).astype(present.dtype)
        return moved
