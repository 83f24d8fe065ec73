"""How the server moves the global model by what the sites agree on."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["ServerOptimizer"]

Arrays = Mapping[str, np.ndarray]

# They are statistics: a step beyond their average would make variances negative.
_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


class ServerOptimizer:
    """
    SGD with momentum on the average change of the sites (FedAvgM); with the defaults it is plain averaging.

    ``v = momentum * v + change`` and ``w = w + learning_rate * v``. Running statistics are averaged and nothing more.

    Reference: Reddi et al., "Adaptive Federated Optimization", ICLR 2021, https://arxiv.org/abs/2003.00295; Hsu et al.,
    2019, https://arxiv.org/abs/1909.06335.

    Args:
        learning_rate: share of the average change that is taken.
        momentum: share of the last step that is taken again.

    Raises:
        ValueError: When ``learning_rate`` is not positive or ``momentum`` not in [0, 1).
    """

    def __init__(self, learning_rate: float = 1.0, momentum: float = 0.0) -> None:
        if not learning_rate > 0 or not 0 <= momentum < 1:
            raise ValueError(f"learning_rate must be > 0 and momentum in [0, 1), got {learning_rate} and {momentum}.")
        self.learning_rate, self.momentum = learning_rate, momentum
        self._velocity: dict[str, np.ndarray] = {}

    def step(self, model: Arrays, average: Arrays, is_difference: bool) -> dict[str, np.ndarray]:
        """
        Args:
            model: the global model.
            average: average of the sites' updates; what no site sent is missing and stays as it is.
            is_difference: whether the updates are what has changed, and not the weights themselves.

        Returns:
            The next global model, each array in the type that it has in the present one.
        """
        following = dict(model)
        for name, value in average.items():
            present = np.asarray(model[name])
            change = np.asarray(value, dtype=np.float64) - (0.0 if is_difference else present)
            if not name.endswith(_BUFFERS):
                if self.momentum:
                    change = self._velocity[name] = change + self.momentum * self._velocity.get(name, 0.0)
                change = self.learning_rate * change
            moved = present + change
            following[name] = (moved.round() if present.dtype.kind in "iu" else moved).astype(present.dtype)
        return following
