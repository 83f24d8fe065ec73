from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from dinomix_monai.networks import with_weights


def test_the_network_itself_comes_back_with_the_weights_of_the_file(tmp_path: Path) -> None:
    trained, network = nn.Linear(3, 2), nn.Linear(3, 2)
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    assert with_weights(network, tmp_path / "model.pt") is network
    assert torch.equal(network.weight, trained.weight)


def test_other_weights_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "model.pt")
    with pytest.raises(
        ValueError, match=r"classes, got .*model\.pt, of which bias has the shape \(4,\) and not \(2,\)\. Train anew"
    ):
        with_weights(nn.Linear(3, 2), tmp_path / "model.pt")
    with pytest.raises(FileNotFoundError, match=r"path must be .*, got .*none\.pt, which does not exist"):
        with_weights(nn.Linear(3, 2), tmp_path / "none.pt")


def test_a_state_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    torch.save({"network": nn.Linear(3, 2).state_dict(), "bias": 1, "weight": 1}, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"of which bias has the shape None and not \(2,\)"):
        with_weights(nn.Linear(3, 2), tmp_path / "state.pt")
    (tmp_path / "text.pt").write_text("no tensors")
    with pytest.raises(ValueError, match=r"path must be the weights of a trained model, got .*text\.pt, which is dam"):
        with_weights(nn.Linear(3, 2), tmp_path / "text.pt")
