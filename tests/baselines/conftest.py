from __future__ import annotations

from tests.engines.conftest import make_trainer, toy_network, unlabeled_batches

__all__ = ["make_trainer", "toy_network", "unlabeled_batches"]
