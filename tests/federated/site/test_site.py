from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from dinomix_monai.core.files import write_json
from dinomix_monai.federated.protocol import bundle_network
from tests.federated.conftest import SETTINGS, VOXELS


def parsed(site, name):
    return site._training.parser.get_parsed_content(name)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def moved(weights, shift=0.01):
    return {name: value + shift if value.is_floating_point() else value for name, value in weights.items()}


def test_rounds_in_processes_of_their_own_end_as_rounds_in_one_do(make_site, make_plan, weights):
    # With all parts that have a state: FKD's heads, PIC's donors, thresholds, optimizer, schedules.
    plan = make_plan({"distillation_weight": 0.05, "distiller#interval": 1})
    one, states = make_site("one", plan=plan), []
    for number in range(2):
        expected = one.train(moved(weights, 0.001 * number), number)
    for number in range(2):
        fresh = make_site("fresh", plan=plan)
        found = fresh.train(moved(weights, 0.001 * number), number)
    assert equal(found.update, expected.update)
    assert found.steps == expected.steps == 2
    assert found.losses == expected.losses
    assert [row["epoch"] for row in found.losses] == [2]
    for site in (one, fresh):
        states.append(parsed(site, "ema_teacher").state_dict())
    assert equal(*states)
    assert not equal(found.update, fresh.train(moved(weights, 0.001), 1).update)


def test_a_new_run_takes_up_nothing_of_an_older_one(make_site, weights):
    first = make_site("site").train(weights, 0)
    assert equal(make_site("site").train(weights, 0).update, first.update)


def test_the_student_takes_the_global_weights_and_the_ema_teacher_of_a_labeled_site_stays(make_site, weights):
    site = make_site(learning_rate=1e-12)
    site.train(weights, 0)
    kept = {name: value.clone() for name, value in parsed(site, "ema_teacher").module.state_dict().items()}
    parsed(site, "ema_teacher").multi_avg_fn = lambda *_: None
    update = site.train(moved(weights), 1).update
    assert all(torch.allclose(update[name], value) for name, value in moved(weights).items())
    assert equal(parsed(site, "ema_teacher").module.state_dict(), kept)


def test_at_a_site_without_labels_the_global_model_teaches_for_the_whole_round(make_site, weights):
    site = make_site(labels=False)
    for number in range(2):
        arriving = moved(weights, 0.01 * number)
        update = site.train(arriving, number).update
        assert equal(dict(parsed(site, "ema_teacher").module.state_dict()), arriving)
        assert not equal(update, arriving)


def test_where_nobody_has_looked_for_some_classes_the_global_model_teaches_for_the_whole_round(
    make_site, make_plan, phantom
):
    names = json.loads((phantom / "dataset.json").read_text())["labels"].values()
    voxels = {name: (*VOXELS, 50.0) for name in ("labeled_voxels", "patch_voxels")}
    site = make_site(plan=make_plan(class_names=(*names, "vein that another site knows"), **voxels))
    weights = bundle_network(15, settings=SETTINGS, seed=7).state_dict()
    for number in range(2):
        arriving = moved(weights, 0.01 * number)
        site.train(arriving, number)
        assert equal(dict(parsed(site, "ema_teacher").module.state_dict()), arriving)


def test_a_site_without_labels_makes_shorter_steps(make_site, make_plan, weights):
    plan = make_plan(unlabeled_learning_rate=0.125)
    for labels, expected in ((True, 1.0), (False, 0.125)):
        site = make_site(f"labels {labels}", labels=labels, plan=plan)
        site.train(weights, 0)
        scheduler = parsed(site, "train#lr_scheduler")
        assert scheduler.base_lrs == pytest.approx([expected * parsed(site, "learning_rate")])


def test_a_site_without_labels_trains_where_nothing_is_mixed(make_site, make_plan, weights):
    assert make_site(labels=False, plan=make_plan(overlays=("baseline/ema",))).train(weights, 0).steps == 2


def test_a_site_without_labels_takes_part_with_steps_and_without_metrics(make_site, weights):
    site = make_site(labels=False)
    described = site.describe()
    assert described["labeled_voxels"] == described["patch_voxels"] == [0] * 14
    assert described["cases"] == {"training": 0, "unlabeled": 1, "validation": 0, "test": 0}
    assert site.validate(weights, 0) == {}
    result = site.train(weights, 0)
    assert result.steps == 2
    assert not equal(result.update, weights)
    assert {"supervised"}.isdisjoint(result.losses[0])
    assert result.losses[0]["unsupervised"] > 0
    assert site.score(weights) == {}
    assert site.train_alone(weights) == {}
    model = torch.load(site.settings.folder / "models" / "model.pt", weights_only=True)
    assert equal(model, weights)


def test_a_site_with_nothing_to_learn_from_yet_sends_no_update(make_site, make_plan, weights):
    result = make_site(labels=False, plan=make_plan({"warm_up": 0.9})).train(weights, 0)
    assert result.update == {}
    assert result.steps == 0
    assert result.losses == [{"epoch": 1}]


def test_the_voxels_of_all_sites_steer_mixing_alignment_and_class_weights(make_site, make_plan, weights):
    voxels = tuple(float(100 * 2**value) for value in range(14))
    site = make_site(plan=make_plan(labeled_voxels=voxels, patch_voxels=voxels[::-1]))
    site.train(weights, 0)
    assert tuple(parsed(site, "mix").mixer.class_curriculum.labeled_counts) == voxels
    shares = parsed(site, "pseudo_labeler").labeled_shares
    assert shares[0] / shares[-1] == pytest.approx((voxels[-1] + 1) / 101)
    power = parsed(site, "loss#class_weight#power")
    assert parsed(site, "loss").class_weight.tolist() == pytest.approx([(voxels[-1] / n) ** power for n in voxels])


def test_schedules_go_by_the_rounds_of_the_run_even_where_one_was_missed(make_site, make_plan, weights):
    site = make_site(plan=make_plan(rounds=4))
    rates = []
    for number in (2, 1):  # the second time as where a server goes on from an older model
        site.train(weights, number)
        trainer = parsed(site, "train#trainer")
        assert (trainer.state.epoch, trainer.state.iteration) == (number + 1, 2 * number + 2)
        assert trainer.progress == (2 * number + 1) / 8
        (rate,) = {group["lr"] for group in trainer.optimizer.param_groups}
        rates.append(rate / parsed(site, "learning_rate"))
    assert rates == pytest.approx([(1 - 6 / 8) ** 0.9, (1 - 4 / 8) ** 0.9])


@pytest.mark.parametrize("transfer", ["difference", "half_difference"])
def test_differences_are_what_whole_weights_differ_by(make_site, make_plan, weights, transfer):
    whole = make_site("whole").train(weights, 0).update
    update = make_site("difference", plan=make_plan(transfer=transfer)).train(weights, 0).update
    half = transfer == "half_difference"
    assert {value.dtype for value in update.values()} == {torch.float16 if half else torch.float32}
    for name, value in update.items():
        torch.testing.assert_close(weights[name] + value.float(), whole[name], rtol=0, atol=1e-4 if half else 1e-7)


def test_local_norms_stay_at_the_site_and_are_its_own_in_the_next_round(make_site, make_plan, weights):
    site = make_site(plan=make_plan(local_norm=True), learning_rate=0.1)
    update = site.train(weights, 0).update
    kept = weights.keys() - update.keys()
    assert kept
    assert all(weights[name].ndim == 1 for name in kept)
    own = {name: parsed(site, "network").state_dict()[name].clone() for name in kept}
    assert not equal(own, {name: weights[name] for name in kept})
    fresh = make_site(plan=make_plan(local_norm=True))
    fresh.validate(weights, 1)
    validated = parsed(fresh, "global_network").state_dict()
    assert all(torch.equal(validated[name], own[name] if name in kept else weights[name]) for name in weights)


def test_the_site_has_the_last_word_over_the_settings_of_the_server(make_site, make_plan, weights):
    site = make_site(plan=make_plan({"steps_per_epoch": 5}), steps_per_epoch=1)
    assert site.train(weights, 0).steps == 1


def test_the_global_model_is_scored_on_validation_and_the_best_is_kept(make_site, weights):
    site = make_site()
    metrics = site.validate(weights, 0)
    assert set(metrics) == {"val_mean_dice"}
    assert 0 <= metrics["val_mean_dice"] < 0.2
    folder = site.settings.folder / "models"
    assert equal(torch.load(folder / "model.pt", weights_only=True), weights)
    assert json.loads((folder / "labels.json").read_text())["1"] == "spleen"


def test_scores_are_for_each_class_that_there_is(make_site, weights):
    site = make_site()
    found = site.score(weights)
    assert len(found) == 13
    assert {count for _, count in found.values()} == {1}
    assert all(0 <= mean < 0.3 and not math.isnan(mean) for mean, _ in found.values())


def test_alone_a_site_trains_as_long_and_its_state_of_the_federation_is_untouched(make_site, weights):
    site = make_site()
    site.train(weights, 0)
    before = (site.settings.folder / "models" / "last" / "state.pt").read_bytes()
    assert site.train_alone(weights)
    assert (site.settings.folder / "models" / "last" / "state.pt").read_bytes() == before
    rows = (site.settings.folder / "alone" / "history.csv").read_text().splitlines()
    assert len(rows) == 1 + 2


def test_what_a_site_says_of_itself_is_plain_and_names_no_file(make_site, phantom, weights):
    described = make_site().describe()
    assert described["network"] == {name: list(value.shape) for name, value in weights.items()}
    text = json.dumps(described)
    assert str(phantom) not in text
    assert ".nii" not in text
    assert described["teacher"] == "none"
    assert described["labeled_voxels"][0] > described["labeled_voxels"][1] > 0
    # One labeled case: a whole patch.
    assert sum(described["patch_voxels"]) == pytest.approx(32 * 32 * 16)
    assert {"monai", "torch", "dinomix-monai", "python"} <= described["versions"].keys()


@pytest.mark.parametrize("given", [True, False])
def test_a_site_warns_where_its_scans_would_be_seen_as_the_phantom(
    make_site, make_plan, phantom, tmp_path, caplog, given
):
    folder = shutil.copytree(phantom, tmp_path / "own")
    name = "site-1-of-3-1-unlabeled.json"
    listed = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({key: value for key, value in listed.items() if key != "phantom_seed"}))
    plan = make_plan()
    if not given:
        del plan.settings["spacing_mm"]
    make_site(plan=plan, dataset_dir=str(folder)).describe()
    assert ("The voxel size of 4.5 x 4.5 x 5.5 mm is that of the phantom" in caplog.text) == (not given)


def test_a_site_learns_and_scores_the_classes_that_it_has_in_a_model_of_more(make_site, make_plan, phantom):
    # Its own values of liver and spleen are others than the model's; nobody has looked for the vein, "$1/0" or not.
    own = {"0": "background", "1": "spleen", "2": "liver"}
    names = ("background", "liver", "$1/0", "spleen")
    content = json.loads((phantom / "site-1-of-3-1-unlabeled.json").read_text())
    for section in ("training", "validation", "test"):
        for case in content[section]:
            image = nib.load(phantom / case["label"])
            values = np.array([0, 1, 2] + [0] * 11, dtype=np.uint8)[np.asarray(image.dataobj).astype(int)]
            case["label"] = f"labels/two-{Path(case['label']).name}"
            nib.save(nib.Nifti1Image(values, image.affine), phantom / case["label"])
    write_json(phantom / "two.json", {**content, "labels": own})
    lists = {"datalist#file": "two.json"}
    assert make_site("labels", **lists).labels() == {"class_names": list(own.values())}

    voxels = (1000.0, 50.0, 20.0, 60.0)
    site = make_site(plan=make_plan(class_names=names, labeled_voxels=voxels, patch_voxels=voxels), **lists)
    described = site.describe()
    assert described["class_names"] == list(names)
    assert described["annotated"] == ["liver", "spleen"]
    counts = described["labeled_voxels"]
    assert counts[2] == 0
    labels = [np.asarray(nib.load(phantom / case["label"]).dataobj) for case in content["training"]]
    assert counts[1] == sum((label == 2).sum() for label in labels)
    assert counts[3] == sum((label == 1).sum() for label in labels)

    weights = bundle_network(4, settings=SETTINGS, seed=7).state_dict()
    result = site.train(weights, 0)
    assert result.steps == 2
    assert all(math.isfinite(value) for value in result.losses[0].values())
    assert set(site.score(weights)) == {"liver", "spleen"}
    assert set(site.validate(weights, 0)) <= {"val_mean_dice"}
    assert (site.settings.folder / "models" / "model.pt").is_file()


def test_steps_that_are_left_out_do_not_count_in_the_average(make_site, weights):
    site = make_site()
    trainer = site._training_workflow(0).parser.get_parsed_content("train#trainer")
    loss = trainer.loss_function

    class BrokenOnce(torch.nn.Module):
        calls = 0

        def forward(self, *args):
            self.calls += 1
            return loss(*args) * (math.nan if self.calls == 1 else 1)

    trainer.loss_function = BrokenOnce()
    assert site.train(weights, 0).steps == 1


def test_a_site_scores_where_somebody_has_looked(make_site, phantom, weights):
    content = json.loads((phantom / "site-1-of-3-1-unlabeled.json").read_text())
    liver, expected = 6, []
    for case in content["test"]:
        label = np.asarray(nib.load(phantom / case["label"]).dataobj)
        drawn = np.flatnonzero((label == liver).any(axis=(0, 1)))
        case["annotated_slices"] = {"liver": drawn.tolist()}
        known = label > 0
        known[..., drawn] = True
        expected.append(2 * (label == liver).sum() / ((label == liver).sum() + known.sum()))
    write_json(phantom / "drawn.json", content)
    # Finds liver everywhere.
    (last,) = (name for name, value in weights.items() if value.shape == (14,))
    weights[last][liver] = 1e6
    dice, cases = make_site(**{"datalist#file": "drawn.json"}).score(weights)["liver"]
    assert (dice, cases) == (pytest.approx(np.mean(expected)), len(expected))
