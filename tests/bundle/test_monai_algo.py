from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

# Other federations drive a bundle through this class of MONAI: two rounds of it over ours.


def test_monai_algo_trains_and_evaluates_the_bundle_for_two_rounds(workflow: Callable, tmp_path: Path) -> None:
    settings = {"epochs": 2, "distillation_weight": 0.05, "output_dir": str(tmp_path / "site")}
    training = workflow("train", "federated", **settings)
    evaluation = workflow("train", "federated", **settings)
    algo = MonaiAlgo(bundle_root=str(tmp_path), local_epochs=1, train_workflow=training, eval_workflow=evaluation)
    algo.initialize(extra={ExtraItems.CLIENT_NAME: "north"})
    assert algo.client_name == "north"
    torch.manual_seed(5)
    weights = {
        name: value + 0.01 * torch.randn_like(value) if value.is_floating_point() else value.clone()
        for name, value in algo.trainer.network.state_dict().items()
    }
    for number in range(2):
        algo.train(ExchangeObject(weights=weights))
        reply = algo.get_weights()
        assert reply.weight_type == WeightType.WEIGHT_DIFF
        assert reply.statistics[FlStatistics.NUM_EXECUTED_ITERATIONS] == 3
        assert algo.trainer.state.epoch == number + 1
        assert algo.trainer.progress == (3 * (number + 1) - 1) / 6
        assert reply.weights.keys() == weights.keys()
        assert any(value.abs().max() > 0 for value in reply.weights.values())
        weights = {name: value + reply.weights[name] for name, value in weights.items()}
        local = algo.trainer.network.state_dict()
        assert all(torch.allclose(weights[name], local[name]) for name in weights)
        metrics = algo.evaluate(ExchangeObject(weights=weights)).metrics
        assert 0 <= float(metrics["val_mean_dice"]) <= 1
        assert all(torch.equal(algo.evaluator.network.state_dict()[name], weights[name]) for name in weights)
    algo.finalize()
