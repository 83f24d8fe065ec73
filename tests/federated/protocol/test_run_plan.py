from __future__ import annotations

import json
from dataclasses import fields

import pytest

from dinomix_monai.federated.protocol import RunPlan


def test_a_plan_comes_through_a_message_of_plain_values():
    settings = {"a": 1.5, "b": [1, [2, 3]], "c": True}
    plan = RunPlan(4, 2, settings, ("acdc",), "difference", 0.1, True, labeled_voxels=(9.0, 1.0))
    message = json.loads(json.dumps(plan.to_message()))
    assert RunPlan.from_message(message) == plan
    assert plan.epochs == 8


def test_all_parts_of_a_message_are_of_the_plain_types_that_nvflare_can_send():
    message = RunPlan(1, 1, labeled_voxels=(1.0,)).to_message()
    assert {type(value) for value in message.values()} <= {int, float, bool, str, list, dict}


@pytest.mark.parametrize(
    "value", ["$__import__('os').system('true')", "@device", "%run", [1, "$1"], {"_target_": 1}, None]
)
def test_what_a_bundle_would_run_is_refused_whoever_sends_it(value):
    message = {**RunPlan(1, 1).to_message(), "settings": {"epochs": value}}
    with pytest.raises(ValueError, match=r"settings must be numbers or lists of numbers, got .* for epochs"):
        RunPlan.from_message(message)


@pytest.mark.parametrize(
    "name",
    [one.name for one in fields(RunPlan) if one.name not in ("settings", "overlays", "transfer", "class_names")],
)
def test_text_is_refused_wherever_a_number_belongs(name):
    text = "$__import__('os').system('true')"
    message = {**RunPlan(1, 1).to_message(), name: [text] if name.endswith("_voxels") else text}
    with pytest.raises(ValueError, match=f"{name} must be made of numbers, got .*import"):
        RunPlan.from_message(message)


@pytest.mark.parametrize("overlay", ["../secret", "/etc/passwd", "a/../b", "acdc.json", ""])
def test_overlays_are_names_and_not_paths(overlay):
    with pytest.raises(ValueError, match="overlays must be names of configs of the bundle"):
        RunPlan(1, 1, overlays=(overlay,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rounds": 0}, "rounds and epochs_per_round must be >= 1, got 0 and 1"),
        ({"epochs_per_round": 0}, "rounds and epochs_per_round must be >= 1, got 1 and 0"),
        ({"transfer": "quarter"}, "transfer must be one of full, difference, half_difference, got 'quarter'"),
        ({"proximal_weight": -1}, "proximal_weight must be >= 0, got -1"),
        ({"unlabeled_learning_rate": 0}, "unlabeled_learning_rate must be > 0, got 0"),
    ],
)
def test_an_argument_outside_of_its_range_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RunPlan(**{"rounds": 1, "epochs_per_round": 1, **changes})
