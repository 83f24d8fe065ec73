from __future__ import annotations

import argparse
import math
import traceback

import pytest
import torch
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.client import FLModel, ParamsType

from dinomix_monai.data.anatomy import ORGANS
from dinomix_monai.federated.site import client


class Writer:
    def __init__(self):
        self.rows = []

    def add_scalar(self, tag, scalar, global_step):
        self.rows.append((tag, global_step))
        assert math.isfinite(scalar)


def leaves(value, path=()):
    if isinstance(value, dict):
        for name, item in value.items():
            yield from leaves(item, (*path, str(name)))
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item, path)
    else:
        yield path, value


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("task", ["train", "validate", "score"])
def test_nothing_but_weights_of_the_student_numbers_and_names_of_classes_leaves_a_site(
    make_site, make_plan, weights, task, labels
):
    plan = make_plan({"distillation_weight": 0.05, "distiller#interval": 1})
    site, writer = make_site(labels=labels, plan=plan), Writer()
    message = FLModel(params=weights, current_round=0, meta={"name": "before"})
    reply = client.perform_task(site, task, message, writer)
    assert set(reply.params) == (set(weights) if task == "train" else set())
    assert all(value.shape == weights[name].shape for name, value in reply.params.items())
    classes = {"background", *ORGANS}
    for path, value in [*leaves(reply.metrics or {}), *leaves(reply.meta)]:
        assert type(value) in (int, float), path
        assert set(path) <= {"val_mean_dice", "answer", FLMetaKey.NUM_STEPS_CURRENT_ROUND, *classes}
    if task == "train":
        assert reply.meta[FLMetaKey.NUM_STEPS_CURRENT_ROUND] == 2
        assert reply.params_type == ParamsType.FULL
        assert set(reply.metrics) == ({"val_mean_dice"} if labels else set())
        assert ("train_loss", 1) in writer.rows
        assert ("global_val_mean_dice", 0) in writer.rows or not labels


def test_differences_are_declared_as_such(make_site, make_plan, weights):
    site = make_site(plan=make_plan(transfer="half_difference"))
    reply = client.perform_task(site, "train", FLModel(params=weights, current_round=0), Writer())
    assert reply.params_type == ParamsType.DIFF
    assert {value.dtype for value in reply.params.values()} == {torch.float16}


def test_a_task_that_there_is_not_is_refused(make_site, weights):
    with pytest.raises(ValueError, match=r"task must be one of labels, handshake, train, .*, got 'delete'"):
        client.perform_task(make_site(), "delete", FLModel(params=weights, current_round=0), Writer())


def test_what_is_wrong_at_a_site_is_told_by_kind_and_not_by_the_names_of_files(
    tmp_path, make_plan, monkeypatch, caplog
):
    monkeypatch.setattr(client.flare, "get_site_name", lambda: "site-1")
    options = argparse.Namespace(folder=str(tmp_path), settings_file=None, dataset_dir=str(tmp_path / "patient_7"))
    reply = client._introduction(options, make_plan(), "handshake")
    assert reply.meta == {"error": "ValueError"}
    assert reply.params == {}
    # Errors in a site's log may be streamed to the server.
    assert "patient_7" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_task_that_fails_is_raised_without_the_names_of_files(make_plan, monkeypatch, caplog):
    def fail(*_):
        raise ValueError("patient_7.nii.gz is damaged")

    message = FLModel(params={"a": 1.0}, meta={"plan": make_plan().to_message()})
    calls = {"init": None, "is_running": True, "receive": message, "get_task_name": "train"}
    for name, value in calls.items():
        monkeypatch.setattr(client.flare, name, lambda value=value: value)
    monkeypatch.setattr(client, "SummaryWriter", object)
    monkeypatch.setattr(client, "_read_settings", fail)
    with pytest.raises(RuntimeError, match=r"^ValueError in the task train; the warning above says what\.$") as raised:
        client.main([])
    assert "patient_7" not in "".join(traceback.format_exception(raised.value))
    assert "patient_7" in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_settings_file_without_data_does_not_mean_the_phantom(tmp_path, monkeypatch):
    monkeypatch.setattr(client.flare, "get_site_name", lambda: "site-1")
    file = tmp_path / "site.json"
    file.write_text('{"device": "cpu"}')
    options = argparse.Namespace(folder=str(tmp_path), settings_file=str(file), dataset_dir=None)
    with pytest.raises(
        ValueError, match=r"settings_file must give the dataset_dir of the site, got none in .*site\.json"
    ):
        client._read_settings(options)
