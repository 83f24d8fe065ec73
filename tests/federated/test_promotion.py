from __future__ import annotations

import json

import pytest
import torch

from dinomix_monai.bundle import Bundle
from dinomix_monai.federated import find_checkpoint, promote_checkpoint, read_checkpoint
from dinomix_monai.federated.protocol import bundle_network

CONFIG = Bundle.find().configs / "train.json"
NAMES = ["background", "liver", "spleen"]


@pytest.fixture
def checkpoint(tmp_path):
    network = bundle_network(3)
    meta = {"class_names": NAMES, "teacher": "abc", "rounds": 4, "next_round": 4}
    # A server averages in double precision what it does not know better.
    model = {name: value.double() for name, value in network.state_dict().items()}
    torch.save({"model": model, "meta_props": meta}, tmp_path / "FL_global_model.pt")
    return tmp_path / "FL_global_model.pt"


def test_a_global_model_becomes_the_bundles(checkpoint, tmp_path):
    path = promote_checkpoint(checkpoint, tmp_path / "models" / "model.pt", CONFIG)
    found, expected = torch.load(path, weights_only=True), bundle_network(3).state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        torch.testing.assert_close(found[name], value)
    assert json.loads((path.parent / "labels.json").read_text()) == {"0": "background", "1": "liver", "2": "spleen"}


def test_the_network_has_the_channels_of_the_run(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["model"] = bundle_network(3, settings={"num_channels": 2}).state_dict()
    assert content["model"]["stem.0.weight"].shape[1] == 2
    content["meta_props"]["num_channels"] = 2
    torch.save(content, checkpoint)
    path = promote_checkpoint(checkpoint, tmp_path / "model.pt", CONFIG)
    assert torch.load(path, weights_only=True)["stem.0.weight"].shape[1] == 2


def test_weights_of_another_network_are_refused_and_nothing_is_written(checkpoint, tmp_path):
    content = torch.load(checkpoint, weights_only=True)
    content["model"].pop(next(iter(content["model"])))
    torch.save(content, checkpoint)
    with pytest.raises(
        ValueError, match=r"checkpoint must hold the weights of network_def .* has the shape None and not"
    ):
        promote_checkpoint(checkpoint, tmp_path / "models" / "model.pt", CONFIG)
    assert not (tmp_path / "models").exists()


def test_what_is_no_global_model_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"checkpoint must be a global model, got .*none"):
        read_checkpoint(tmp_path / "none.pt")
    torch.save({"weight": torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"checkpoint must be an FL_global_model\.pt or best_FL_global_model\.pt"):
        read_checkpoint(tmp_path / "model.pt")
    torch.save({"meta_props": 3}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"checkpoint must be an FL_global_model\.pt or best_FL_global_model\.pt"):
        read_checkpoint(tmp_path / "model.pt")
    (tmp_path / "text.pt").write_text("no tensors")
    with pytest.raises(ValueError, match=r"checkpoint must be a global model, got .*text\.pt, which is damaged"):
        read_checkpoint(tmp_path / "text.pt")


@pytest.mark.parametrize(
    "folder",
    [
        "app_server",
        "server/simulate_job/app_server",
        "dinomix/server/simulate_job/app_server",
        "workspace/app_server",
        "4f1c/workspace/app_server",
    ],
)
def test_the_model_of_a_run_is_found_in_each_folder_that_a_run_is_known_by(folder, tmp_path):
    run = tmp_path / folder
    run.mkdir(parents=True)
    (run / "FL_global_model.pt").touch()
    assert find_checkpoint(tmp_path) == run / "FL_global_model.pt"
    (run / "best_FL_global_model.pt").touch()
    assert find_checkpoint(tmp_path) == run / "best_FL_global_model.pt"
    assert find_checkpoint(run / "FL_global_model.pt") == run / "FL_global_model.pt"


def test_a_folder_with_no_run_or_several_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"neither best_FL_global_model\.pt nor FL_global_model\.pt in app_server"
    ):
        find_checkpoint(tmp_path)
    for job in ("a", "b"):
        (tmp_path / job / "workspace" / "app_server").mkdir(parents=True)
        (tmp_path / job / "workspace" / "app_server" / "FL_global_model.pt").touch()
    with pytest.raises(ValueError, match=r"one run, got .* with 2 of them: .*a/workspace.*, .*b/workspace"):
        find_checkpoint(tmp_path)
