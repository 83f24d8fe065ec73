from __future__ import annotations

import pytest
from monai.bundle import ConfigParser

from dinomix_monai.training_plan import TrainingPlan, fitting_epochs, plan_training


def plan(**changed) -> TrainingPlan:
    settings = dict(
        what={"data": "4 training cases"},
        epochs=10,
        steps_per_epoch=100,
        warm_up=0.25,
        validations=6,
        cases=4,
        voxels=2000,
        device="2 CPU threads",
        preparation_s_per_voxel=0.5,
        step_s=(2.0, 4.0),
        validation_s=3.0,
        memory=2.5e9,
        disk={"best model": 5e6},
        volumes=1.5e9,
        are_mapped=False,
    )
    return TrainingPlan(**{**settings, **changed})


def memory_of(planned: TrainingPlan) -> str:
    return dict(line.split("  ", 1) for line in str(planned).splitlines())["memory"].strip()


def test_the_duration_is_the_sum_of_its_parts_by_hand():
    planned = plan()
    assert planned.seconds == {"preparation": 1000, "steps": 250 * 2 + 750 * 4, "validation": 72}
    lines = dict(line.split("  ", 1) for line in str(planned).splitlines())
    assert lines["steps"].strip() == "10 epochs of 100 = 1000, the first 25% without unlabeled patches"
    assert lines["duration"].strip() == "76 min: preparation 17 min, steps 58 min, validation 72 s"
    assert lines["measured"].strip().startswith("now, on 2 CPU threads; for another device nothing is known")
    # An epoch takes 350 s, and 1072 s go beside them.
    assert planned.epochs_in(1072 + 20 * 350) == 20
    with pytest.raises(ValueError, match=r"enough for 6 epochs, at least 53 min here, got 48 min\. Make the patches"):
        planned.epochs_in(2900)


@pytest.mark.parametrize(("seconds", "epochs"), [(165, 8), (174, 8), (176, 9), (164.9, 8)])
def test_epochs_fill_a_time_to_the_nearest(seconds, epochs):
    assert fitting_epochs(seconds, beside_s=5, epoch_s=(8.0, 24.0), warm_up=0.25, at_least=8) == epochs


def test_a_time_for_too_few_epochs_is_refused():
    with pytest.raises(ValueError, match="The time must be enough for 8 epochs, at least 3 min here, got 2 min"):
        fitting_epochs(150, beside_s=5, epoch_s=(8.0, 24.0), warm_up=0.25, at_least=8)


def test_the_memory_says_what_of_it_are_volumes_or_that_they_are_mapped():
    peak = "2.5 GB at its peak at most, with a full donor bank; "
    assert memory_of(plan()) == peak + "1.5 GB of it are all volumes, which memory_map.json maps from disk"
    mapped = "volumes (1.5 GB) are mapped from disk, as many in memory as there is room for"
    assert memory_of(plan(are_mapped=True)) == peak + mapped


def test_no_repetitions_are_refused():
    with pytest.raises(ValueError, match="repetitions must be >= 1, got 0"):
        plan_training(ConfigParser(), 0)
