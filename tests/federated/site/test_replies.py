from __future__ import annotations

import pytest
import torch
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.client import ParamsType

from dinomix_monai.federated.site.replies import answer_reply, not_ready_reply, send_curves, update_reply
from dinomix_monai.federated.site.site import RoundResult


@pytest.mark.parametrize(
    ("transfer", "kind"),
    [("full", ParamsType.FULL), ("difference", ParamsType.DIFF), ("half_difference", ParamsType.DIFF)],
)
def test_an_update_leaves_with_its_form_its_steps_and_its_score_and_without_the_losses(transfer, kind):
    result = RoundResult({"w": torch.ones(2)}, 3, [{"epoch": 1.0, "loss": 0.5}])
    reply = update_reply(result, {"val_mean_dice": 0.25}, transfer)
    assert reply.params_type == kind
    assert list(reply.params) == ["w"]
    assert reply.metrics == {"val_mean_dice": 0.25}
    assert reply.meta == {FLMetaKey.NUM_STEPS_CURRENT_ROUND: 3}


def test_an_answer_leaves_without_weights_under_a_key_of_plain_text():
    reply = answer_reply({"liver": [0.5, 2]})
    assert reply.params == {}
    assert reply.meta == {"answer": {"liver": [0.5, 2]}}
    assert {type(key) for key in reply.meta} == {str}


def test_of_an_error_only_the_name_of_its_class_leaves():
    reply = not_ready_reply(FileNotFoundError("/data/patient_7.nii.gz"))
    assert (reply.params, reply.meta) == ({}, {"error": "FileNotFoundError"})


def test_curves_go_by_the_round_for_the_global_model_and_by_the_epoch_for_losses():
    sent = []

    class Writer:
        def add_scalar(self, tag, scalar, global_step):
            sent.append((tag, scalar, global_step))

    losses = [{"epoch": 3.0, "loss": 0.5}, {"epoch": 4.0, "loss": 0.25, "confident_share": 0.75}]
    send_curves(Writer(), 1, {"val_mean_dice": 0.1}, losses)
    assert sent == [
        ("global_val_mean_dice", 0.1, 1),
        ("train_loss", 0.5, 3),
        ("train_loss", 0.25, 4),
        ("train_confident_share", 0.75, 4),
    ]
