from __future__ import annotations

import json
import math
import warnings
from types import SimpleNamespace

import pytest
import torch
from monai.engines import SupervisedEvaluator
from torch import nn

from dinomix_monai.handlers import BestModelHandler, LastModelHandler
from dinomix_monai.models import read_class_names
from dinomix_monai.networks import EMATeacher
from tests.handlers.toy_run import NAMES, Network, Run, is_equal, killed_halfway


def evaluation(value, epoch=1, network=None, handler=None):
    """An evaluator that has just come to this value of its key metric."""
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"), val_data_loader=[None], network=network or nn.Linear(1, 1)
    )
    evaluator.state.metrics["val_mean_dice"] = value
    evaluator.state.epoch = epoch
    if handler is not None:
        handler(evaluator)
    return evaluator


def test_the_model_is_written_only_when_it_is_better(tmp_path):
    handler, network = BestModelHandler(tmp_path / "models" / "model.pt", NAMES), nn.Linear(1, 1, bias=False)
    written = []
    for epoch, value in enumerate([0.2, 0.5, 0.5, 0.4, math.nan, 0.6], start=1):
        nn.init.constant_(network.weight, epoch)
        evaluation(value, epoch, network, handler)
        written.append(torch.load(handler.path, weights_only=True)["weight"].item())
    assert written == [1, 2, 2, 2, 2, 6]
    assert handler.state_dict() == {"best": 0.6, "epoch": 6, "waited": 0, "has_written": True}


def test_without_a_score_the_last_model_is_kept_and_that_is_said_once(tmp_path):
    handler, network = BestModelHandler(tmp_path / "model.pt", NAMES), nn.Linear(1, 1, bias=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in (1, 2, 3):
            nn.init.constant_(network.weight, epoch)
            evaluation(math.nan, epoch, network, handler)
    assert [str(one.message).partition(",")[0] for one in caught] == ["No validation case has any of the classes"]
    assert torch.load(handler.path, weights_only=True)["weight"].item() == 3
    assert handler.state_dict() == {"best": None, "epoch": 3, "waited": 0, "has_written": True}
    assert not list(tmp_path.glob("*.previous.*"))
    evaluation(0.0, 4, network, handler)
    assert handler.state_dict() == {"best": 0.0, "epoch": 4, "waited": 0, "has_written": True}


def test_it_loads_strictly_and_the_names_of_the_classes_stand_beside_it(tmp_path):
    network, other = Network(), Network()
    handler = BestModelHandler(tmp_path / "model.pt", NAMES)
    evaluation(0.5, network=network, handler=handler)
    other.load_state_dict(torch.load(handler.path, weights_only=True), strict=True)
    assert is_equal(other.state_dict(), network.state_dict())
    named = json.loads((tmp_path / "labels.json").read_text())
    assert named == {"0": "background", "1": "spleen", "2": "adrenal gland"}
    assert read_class_names(handler.path) == NAMES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["labels.json", "model.pt"]


def test_the_names_have_no_prefix_of_a_parallel_network(tmp_path):
    handler = BestModelHandler(tmp_path / "model.pt", NAMES)
    evaluation(0.5, network=nn.DataParallel(nn.Linear(1, 1)), handler=handler)
    assert list(torch.load(handler.path, weights_only=True)) == ["weight", "bias"]


def test_a_kill_while_it_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    handler, network = BestModelHandler(tmp_path / "model.pt", NAMES), nn.Linear(1, 1)
    evaluation(0.2, network=network, handler=handler)
    old = handler.path.read_bytes()

    monkeypatch.setattr(torch, "save", killed_halfway)
    with pytest.raises(KeyboardInterrupt):
        evaluation(0.9, network=network, handler=handler)
    assert handler.path.read_bytes() == old


def test_a_resumed_run_remembers_the_best(tmp_path):
    first, resumed = (BestModelHandler(tmp_path / "model.pt", NAMES) for _ in range(2))
    evaluation(0.7, 3, handler=first)
    before = first.path.read_bytes()
    resumed.load_state_dict(first.state_dict())
    evaluation(0.6, 4, network=nn.Linear(2, 2), handler=resumed)
    assert first.path.read_bytes() == before
    assert resumed.state_dict() == {"best": 0.7, "epoch": 3, "waited": 1, "has_written": True}


def test_an_unknown_metric_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"key_metric must name a metric .*\(val_mean_dice\), got 'accuracy'"):
        evaluation(0.5, handler=BestModelHandler(tmp_path / "model.pt", NAMES, key_metric="accuracy"))


def test_it_holds_the_network_that_was_scored_and_the_epoch_of_the_trainer(tmp_path):
    run = Run(tmp_path, epochs=1).run()
    saved = torch.load(tmp_path / "model.pt", weights_only=True)
    assert is_equal(saved, run.ema_teacher.module.state_dict())
    assert run.best.epoch == 1
    assert run.best.best == run.evaluator.state.metrics["val_mean_dice"]


def test_without_validation_the_model_of_the_one_before_is_kept_too(tmp_path):
    best = BestModelHandler(tmp_path / "model.pt", NAMES)
    best.path.write_bytes(b"earlier")
    network = Network()
    with pytest.warns(UserWarning, match="No validation has chosen a model"):
        LastModelHandler(best)(SimpleNamespace(ema_teacher=EMATeacher(network)))
    assert best.path.with_name("model.previous.pt").read_bytes() == b"earlier"
    assert is_equal(torch.load(best.path, weights_only=True), network.state_dict())
