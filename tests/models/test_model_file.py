from __future__ import annotations

import json

import pytest
import torch

from dinomix_monai.core.files import write_json
from dinomix_monai.data import make_phantom
from dinomix_monai.models import check_model, load_model, read_class_names, read_model, write_class_names, write_model

NAMES = ["background", *(f"organ {number}" for number in range(1, 12))]  # more than ten: "10" sorts before "2"


def test_names_come_back_in_their_order(tmp_path):
    write_class_names(tmp_path / "model.pt", tuple(NAMES))
    assert read_class_names(tmp_path / "model.pt") == NAMES
    assert read_class_names(str(tmp_path / "other.pt")) == NAMES  # of the folder, not of the file


def test_the_file_has_the_form_of_a_datalist(tmp_path):
    path = write_class_names(tmp_path / "model.pt", ["background", "liver"])
    assert path == tmp_path / "labels.json"
    assert json.loads(path.read_text()) == {"0": "background", "1": "liver"}


def test_names_in_another_order_are_read_by_their_values(tmp_path):
    (tmp_path / "labels.json").write_text('{"2": "spleen", "0": "background", "1": "liver"}')
    assert read_class_names(tmp_path / "model.pt") == ["background", "liver", "spleen"]


def test_a_missing_folder_is_made(tmp_path):
    assert write_class_names(tmp_path / "new/models/model.pt", NAMES).is_file()
    assert read_class_names(tmp_path / "new/models/model.pt") == NAMES


def test_names_are_replaced(tmp_path):
    write_class_names(tmp_path / "model.pt", NAMES)
    write_class_names(tmp_path / "model.pt", ["background", "liver"])
    assert read_class_names(tmp_path / "model.pt") == ["background", "liver"]


def test_without_a_file_the_names_are_those_of_the_bundle(tmp_path):
    model = tmp_path / "models" / "model.pt"
    outputs = {"pred": {"channel_def": {"1": "liver", "0": "background"}}}
    write_json(tmp_path / "configs" / "metadata.json", {"network_data_format": {"outputs": outputs}})
    assert read_class_names(model) == ["background", "liver"]
    write_json(tmp_path / "configs" / "metadata.json", {"version": "0.1.0"})
    with pytest.raises(ValueError, match=r"metadata.json must name the classes as .*, got something else"):
        read_class_names(model)


def test_without_a_bundle_the_names_are_those_of_the_phantom(tmp_path, caplog):
    datalist = make_phantom(tmp_path / "phantom", cases=(1, 0, 0, 0), size=(16, 16, 16))
    names = json.loads(datalist.read_text())["labels"]
    for is_there in (False, True):
        if is_there:
            torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
        assert read_class_names(tmp_path / "model.pt") == [names[str(value)] for value in range(14)]
        assert ("labels.json is missing: the classes of" in caplog.text) == is_there


def test_a_missing_model_is_refused(tmp_path):
    message = r"model_file must be the weights of a trained model, got .*model\.pt, which does not exist\. Train first"
    for model_file in (tmp_path / "model.pt", str(tmp_path / "model.pt")):
        with pytest.raises(FileNotFoundError, match=message):
            check_model(model_file)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "model.pt")
    check_model(tmp_path / "model.pt")


@pytest.mark.parametrize("content", [{}, {"network": {"weight": torch.zeros(1)}}])
def test_a_file_without_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "state.pt")
    with pytest.raises(ValueError, match=r"model_file must be the weights .*models/model.pt in its output_dir"):
        check_model(tmp_path / "state.pt")


def test_a_damaged_model_is_refused(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"model_file must be the weights .*model.pt, which is damaged"):
        check_model(tmp_path / "model.pt")


@pytest.mark.parametrize("content", ["{", "[]x", '{"1": "liver"}', "7", "[" * 100_000])
def test_names_that_cannot_be_read_are_refused(tmp_path, content):
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(ValueError, match=r"labels.json must name the classes"):
        read_class_names(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (torch.nn.Linear(2, 1), r"of which weight has the shape \(1, 2\) and not \(1, 1\)"),
        (torch.nn.Linear(1, 1, bias=False), r"of which bias has the shape None and not \(1,\)"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path, other, message):
    network = torch.nn.Linear(1, 1)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    check_model(tmp_path / "model.pt", network)
    torch.save(other.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=rf"the weights of the configured network, got .*model.pt, {message}"):
        check_model(tmp_path / "model.pt", network)


def test_a_written_model_is_read_and_loaded_as_it_was(tmp_path):
    trained, network = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    assert write_model(trained, tmp_path / "models" / "model.pt", ["background", "liver"]).is_file()
    assert read_class_names(tmp_path / "models" / "model.pt") == ["background", "liver"]
    weights = read_model(tmp_path / "models" / "model.pt")
    assert torch.equal(weights["weight"], trained.weight)
    assert load_model(network, tmp_path / "models" / "model.pt") is network
    assert torch.equal(network.weight, trained.weight)


def test_the_file_is_a_plain_state_dict(tmp_path):
    network = torch.nn.Linear(3, 2)
    path = write_model(network, tmp_path / "model.pt", ["background", "liver"])
    torch.nn.Linear(3, 2).load_state_dict(torch.load(path, weights_only=True), strict=True)


def test_the_message_has_the_name_of_the_argument(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"start_file must be the weights of a trained model, got .*none\.pt"):
        load_model(torch.nn.Linear(3, 2), tmp_path / "none.pt", "start_file")
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"start_file must .*, of which bias has the shape \(4,\) and not \(2,\)"):
        load_model(torch.nn.Linear(3, 2), tmp_path / "model.pt", "start_file")


def test_a_network_that_is_refused_keeps_its_weights(tmp_path):
    network = torch.nn.Linear(3, 2)
    before = network.weight.clone()
    torch.save({**network.state_dict(), "bias": torch.zeros(3), "weight": torch.zeros(2, 3)}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="the weights of the configured network"):
        load_model(network, tmp_path / "model.pt")
    assert torch.equal(network.weight, before)
