from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from nvflare.apis.fl_constant import FLMetaKey
from nvflare.apis.fl_context import FLContext
from nvflare.apis.signal import Signal
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.app_opt.pt.model_persistence_format_manager import PTModelPersistenceFormatManager

from dinomix_monai.federated.server.controller import FederatedController
from dinomix_monai.federated.server.summary import read_summary

NAMES = ["background", "liver"]


class Hospital:
    """Adds ``shift`` to the weights in each round; its validation likes a weight of 1 best."""

    def __init__(self, shift=1.0, steps=1, labels=True, own_names=(), **description):
        self.own_names = own_names
        self.shift, self.steps, self.labels = shift, steps, labels
        self.description = {
            "teacher": "aaaa",
            "class_names": NAMES,
            "annotated": NAMES[1:] if labels else [],
            "channel_names": ["T1"],
            "labeled_voxels": [10, 1] if labels else [0, 0],
            "patch_voxels": [4.5, 0.5] if labels else [0, 0],
            "network": {"w": [2]},
            "versions": {},
            **description,
        }
        self.asked, self.seen = [], []

    def __call__(self, task, message):
        self.asked.append((task, message.current_round, message.meta))
        if task == "labels":
            return FLModel(params={}, meta={"answer": {"class_names": self.own_names}})
        if task == "handshake":
            return FLModel(params={}, meta={"answer": self.description})
        weight = message.params["w"]
        self.seen.append(weight.tolist())
        metrics = {"val_mean_dice": float(1 - abs(weight.mean() - 1))} if self.labels else {}
        if task == "train":
            full = message.meta["plan"]["transfer"] == "full"
            update = {"w": np.full(2, self.shift, np.float32) + (weight if full else 0)} if self.steps else {}
            kind = ParamsType.FULL if full else ParamsType.DIFF
            meta = {FLMetaKey.NUM_STEPS_CURRENT_ROUND: self.steps}
            return FLModel(params=update, params_type=kind, metrics=metrics, meta=meta)
        scores = {"liver": [float(weight.mean()), 1]} if self.labels else {}
        return FLModel(params={}, meta={"answer": metrics if task == "validate" else scores})


class Federation(FederatedController):
    """The controller with sites that are called directly, and nothing of NVFlare's network beneath it."""

    def __init__(self, folder, sites, **kwargs):
        super().__init__(class_names=NAMES, num_clients=len(sites), **kwargs)
        self.folder, self.sites = folder, sites
        self.fl_ctx, self.abort_signal, self.engine = FLContext(), Signal(), None
        self.persistence_manager = PTModelPersistenceFormatManager({"w": torch.zeros(2)})
        self.logged, self.panics, self.saved, self.best, self.sent = [], [], [], [], []

    def sample_clients(self, num_clients=None):
        return list(self.sites)

    def broadcast_model(self, task_name, data, targets, callback=None, blocking=True, **limits):
        self.sent.append((task_name, limits))
        results = []
        for site in targets:
            result = self.sites[site](task_name, data)
            if result is not None:
                result.meta["client_name"] = site
                results.append(result)
                if callback is not None:
                    callback(result)
        return results

    def get_num_standing_tasks(self):
        return 0

    def get_run_dir(self):
        return str(self.folder)

    def event(self, event_type):
        if event_type == AppEventType.GLOBAL_BEST_MODEL_AVAILABLE:
            self.best.append(float(self.fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)["weights"]["w"].mean()))

    def fire_event_with_data(self, *args, **kwargs):
        pass

    def info(self, message):
        self.logged.append(message)

    warning = error = info

    def panic(self, reason):
        self.panics.append(reason)

    @property
    def persistor(self):
        return self

    @persistor.setter
    def persistor(self, value):
        pass

    def load(self, context):
        from nvflare.app_common.abstract.model import make_model_learnable

        weights = {name: np.array(value) for name, value in self.persistence_manager.var_dict.items()}
        return make_model_learnable(weights, self.persistence_manager.meta or {})

    def save(self, learnable, context):
        self.saved.append((float(learnable["weights"]["w"].mean()), learnable["meta"]))
        self.persistence_manager.update(learnable)
        torch.save(self.persistence_manager.to_persistence_dict(), self.folder / "FL_global_model.pt")


@pytest.fixture
def federate(tmp_path):
    def build_and_run(*hospitals, **kwargs):
        sites = {f"site-{number}": hospital for number, hospital in enumerate(hospitals, start=1)}
        federation = Federation(tmp_path, sites, **{"num_rounds": 2, "unlabeled_from_dice": 0.0, **kwargs})
        federation.run()
        return federation

    return build_and_run


def saved(federation):
    return [value for value, _ in federation.saved]


@pytest.mark.parametrize("transfer", ["full", "difference"])
def test_updates_are_averaged_by_their_steps(federate, transfer):
    federation = federate(Hospital(1.0, steps=3), Hospital(-1.0, steps=1), transfer=transfer)
    assert saved(federation) == [0.5, 1.0]


def test_the_plan_of_a_round_has_the_voxels_of_all_sites(federate):
    hospital = Hospital()
    federate(
        hospital,
        Hospital(labeled_voxels=[5, 2], patch_voxels=[3, 2]),
        epochs_per_round=3,
        settings={"steps_per_epoch": 7},
    )
    plans = [meta["plan"] for task, _, meta in hospital.asked if task == "train"]
    assert len(plans) == 2
    assert plans[1]["labeled_voxels"] == [15, 3]
    assert plans[1]["patch_voxels"] == [7.5, 2.5]
    assert (plans[1]["rounds"], plans[1]["epochs_per_round"]) == (2, 3)
    assert plans[1]["settings"] == {"steps_per_epoch": 7}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": "bbbb"}, "Handshake: Frozen teachers must be the same everywhere, got bbbb at site-2 and aaaa"),
        ({"class_names": ["background", "spleen"]}, "Handshake: `labels` must be the same everywhere, got"),
    ],
)
def test_a_mismatch_ends_the_run_before_any_weights_are_sent(federate, changes, message):
    first, second = Hospital(), Hospital(**changes)
    federation = federate(first, second)
    assert [text[: len(message)] for text in federation.panics] == [message]
    assert [task for task, *_ in first.asked] == ["handshake"]
    assert not federation.saved
    assert "site-2" in json.loads((federation.folder / "handshake.json").read_text())["sites"]


def test_a_site_that_is_not_ready_or_silent_ends_the_run(federate):
    def broken(task, message):
        return FLModel(params={}, meta={"error": "FileNotFoundError"})

    expected = "Handshake: site-2 is not ready (FileNotFoundError); its log says what is wrong."
    assert federate(Hospital(), broken).panics == [expected]
    expected = "Handshake: site-2 must answer the handshake in 5 s, got nothing."
    assert federate(Hospital(), lambda *_: None, handshake_timeout=5).panics == [expected]


@pytest.mark.parametrize(
    ("shift", "bound", "reason"),
    [
        (np.nan, 0.0, "w has values that are not finite"),
        (np.inf, 0.0, "w has values that are not finite"),
        (100.0, 5.0, "the norm of its change must be at most 5, got 141.4"),
    ],
)
def test_a_bad_update_is_refused_with_the_name_of_its_site_and_the_round_goes_on(federate, shift, bound, reason):
    federation = federate(Hospital(1.0), Hospital(shift), norm_bound=bound)
    assert saved(federation) == [1.0, 2.0]
    assert f"The update of site-2 is refused in round 0: {reason}." in federation.logged
    refused = json.loads((federation.folder / "refused.json").read_text())
    assert refused == [{"round": number, "site": "site-2", "reason": reason} for number in (0, 1)]
    assert not federation.panics


def test_a_shape_that_the_model_has_not_is_refused(federate):
    class Wrong(Hospital):
        def __call__(self, task, message):
            result = super().__call__(task, message)
            if task == "train":
                result.params = {"w": np.zeros(3, np.float32)}
            return result

    federation = federate(Hospital(), Wrong())
    assert saved(federation) == [1.0, 2.0]
    assert "The update of site-2 is refused in round 0: w must have shape (2,), got (3,)." in federation.logged


def test_without_a_single_good_update_the_model_stays_what_it_is(federate):
    federation = federate(Hospital(np.nan), Hospital(steps=0))
    assert saved(federation) == [0.0, 0.0]
    assert not federation.panics


def test_the_best_model_is_kept_and_the_last_one_has_its_chance(federate):
    # Weights 0, 1, 2, 3 arrive; 1 is best. With half of that, 0, 0.5 and 1 at last.
    assert federate(Hospital(1.0), num_rounds=3).best == [0.0, 1.0]
    assert federate(Hospital(0.5), num_rounds=2).best == [0.0, 0.5, 1.0]


@pytest.mark.parametrize(("share", "models", "best"), [(0.5, [0.5, 1.0], 1.0), (0.2, [0.8, 1.6], 0.8)])
def test_a_site_without_labels_has_its_say_in_the_weights_and_none_in_the_choice(federate, share, models, best):
    sites = Hospital(1.0), Hospital(0.0, labels=False)
    federation = federate(*sites, num_rounds=2, unlabeled_share=share)
    assert saved(federation) == pytest.approx(models)
    assert federation.best[-1] == pytest.approx(best)
    summary = json.loads((federation.folder / "summary.json").read_text())
    assert summary["scores"]["after"] == {"site-1": {"liver": [pytest.approx(best), 1]}}


def test_a_site_without_labels_counts_when_the_global_model_that_taught_it_is_good_enough(federate):
    # The sites with labels score the models 0.0, 0.5 and then 1.0 or 0.75.
    for needed, models in ((0.0, [0.25, 0.5, 0.75]), (0.5, [0.5, 0.75, 1.0]), (0.75, [0.5, 1.0, 1.25])):
        sites = Hospital(0.0, labels=False), Hospital(0.5)
        federation = federate(*sites, num_rounds=3, unlabeled_share=0.5, unlabeled_from_dice=needed)
        assert saved(federation) == models
        waited = [message for message in federation.logged if "Updates of site-1 do not count yet" in message]
        assert len(waited) == sum(step == 0.5 for step in np.diff([0.0, *models]))


def test_where_no_site_has_validation_cases_those_without_labels_count_from_the_first_round(federate):
    class WithoutValidation(Hospital):
        def __call__(self, task, message):
            result = super().__call__(task, message)
            result.metrics = {}
            return result

    sites = WithoutValidation(0.5), Hospital(0.0, labels=False)
    federation = federate(*sites, num_rounds=1, unlabeled_share=0.5, unlabeled_from_dice=1.0)
    assert saved(federation) == [0.25]


def test_what_a_site_without_labels_counts_can_be_given_site_by_site(federate):
    sites = Hospital(1.0), Hospital(0.0, labels=False)
    federation = federate(*sites, num_rounds=1, aggregation_weights={"site-2": 3.0})
    assert saved(federation) == [0.25]


@pytest.mark.parametrize(("labeled", "unlabeled", "expected"), [(1, 3, 0.75), (4, 1, 0.8)])
def test_sites_without_labels_count_as_others_do_until_they_are_too_many(federate, labeled, unlabeled, expected):
    sites = [*(Hospital(1.0) for _ in range(labeled)), *(Hospital(0.0, labels=False) for _ in range(unlabeled))]
    assert saved(federate(*sites, num_rounds=1, unlabeled_share=0.25)) == pytest.approx([expected])


@pytest.mark.parametrize("transfer", ["full", "difference"])
def test_a_site_has_no_part_in_the_rows_of_a_class_that_it_does_not_know(federate, monkeypatch, transfer):
    monkeypatch.setattr("dinomix_monai.federated.server.controller.class_axes", lambda *_: {"w": 0})
    knows_all, knows_none = Hospital(1.0), Hospital(3.0, annotated=[], labeled_voxels=[10, 0])
    federate(knows_all, knows_none, num_rounds=1, transfer=transfer)
    assert knows_all.seen[1] == [2.0, 1.0]
    # Sites without labels have pseudo-labels of all classes.
    sites = knows_all, knows_none, Hospital(3.0, labels=False)
    knows_all.seen.clear()
    federate(*sites, num_rounds=1, transfer=transfer, unlabeled_share=0.5)
    assert knows_all.seen[1] == [pytest.approx(7 / 3), 2.0]


@pytest.mark.parametrize("share", [0, 1])
def test_sites_with_and_without_labels_must_both_count_for_something(share):
    with pytest.raises(ValueError, match=f"unlabeled_share must be > 0 and < 1, got {share}"):
        FederatedController(class_names=NAMES, unlabeled_share=share)


def test_a_dice_is_a_share_and_no_percentage():
    with pytest.raises(ValueError, match="unlabeled_from_dice must be from 0 to 1, got 25"):
        FederatedController(class_names=NAMES, unlabeled_from_dice=25)


def test_the_run_ends_with_a_table_of_the_model_before_after_and_alone(federate, capsys):
    federation = federate(Hospital(1.0), num_rounds=1)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    models = ["before", "after", "alone"]
    assert ["class", *(word for of in ("all", "site-1") for model in models for word in (of, model))] in lines
    assert ["liver", "0.000", "1.000", "0.000", "0.000", "1.000", "0.000"] in lines
    tasks = ["handshake", "train", "validate", "score", "score", "alone"]
    assert [task for task, _ in federation.sent] == tasks
    shorter = federate(Hospital(1.0), num_rounds=1, compare_alone=False)
    assert "alone" not in [task for task, _ in shorter.sent]


def test_the_summary_is_whole_when_the_trainings_alone_have_ended(federate, tmp_path):
    found = []

    class Watching(Hospital):
        def __call__(self, task, message):
            if task == "alone":
                found.append(json.loads((tmp_path / "summary.json").read_text())["is_whole"])
            return super().__call__(task, message)

    federation = federate(Watching(1.0), num_rounds=1)
    assert found == [False]
    summary = read_summary(federation.folder)
    assert summary.is_whole
    assert list(summary.scores) == ["before", "after", "alone"]


def test_enough_answers_and_time_outs_are_nvflares_to_enforce(federate):
    federation = federate(Hospital(), min_responses=1, grace_period=3, round_timeout=7, handshake_timeout=11)
    limits = {"timeout": 7, "min_responses": 1, "wait_time_after_min_received": 3}
    assert federation.sent[0] == ("handshake", {"timeout": 11})
    assert all(found == limits for task, found in federation.sent[1:] if task != "alone")
    # As long as all rounds together.
    rounds = [task for task, _ in federation.sent].count("train")
    assert rounds > 1
    longer = {"timeout": 7 * rounds, "min_responses": 1, "wait_time_after_min_received": 3 * rounds}
    assert federation.sent[-1] == ("alone", longer)
    everyone = federate(Hospital(), round_timeout=7)
    expected = {"timeout": 7, "min_responses": None, "wait_time_after_min_received": 0}
    assert everyone.sent[1] == ("train", expected)


def test_what_a_round_tells_a_site_of_the_others_is_what_the_docs_list(federate):
    hospital = Hospital(steps=3)
    federate(hospital, Hospital(steps=2, labels=False), unlabeled_share=1 / 3)
    first, second = (meta for task, _, meta in hospital.asked if task == "train")
    assert set(first) == {"plan", "class_names", "num_channels", "teacher", "rounds", "settings", "next_round"}
    assert set(second) - set(first) == {"nr_aggregated", "current_round", "metrics_aggregation_info"}
    weights = {site["name"]: site["weight"] for site in second["metrics_aggregation_info"]["site_weights"]}
    assert weights == pytest.approx({"site-1": 3.0, "site-2": 1.0})
    others = [meta for task, _, meta in hospital.asked if task not in ("train", "handshake")]
    assert {frozenset(meta) for meta in others} == {frozenset(("plan", "name"))}


def test_a_run_goes_on_where_the_checkpoint_says(federate):
    hospital = Hospital()
    federation = federate(hospital, num_rounds=2, start_round=3)
    rounds = [number for task, number, _ in hospital.asked if task == "train"]
    assert rounds == [3, 4]
    assert hospital.asked[-1][2]["plan"]["rounds"] == 5
    assert [meta["next_round"] for _, meta in federation.saved] == [4, 5]
    assert {(tuple(meta["class_names"]), meta["teacher"], meta["rounds"]) for _, meta in federation.saved} == {
        (tuple(NAMES), "aaaa", 5)
    }


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(federate, monkeypatch, tmp_path):
    def run(**kwargs):
        # Its second model is the best one, and the last are far beyond.
        return federate(Hospital(0.5), Hospital(0.5, steps=2), server_momentum=0.5, **kwargs)

    whole = run(num_rounds=4)
    first = run(num_rounds=3)
    content = torch.load(tmp_path / "FL_global_model.pt", weights_only=True)
    begin = Federation.__init__

    def continued(self, *args, **kwargs):
        begin(self, *args, **kwargs)
        self.persistence_manager = PTModelPersistenceFormatManager(copy.deepcopy(content))

    monkeypatch.setattr(Federation, "__init__", continued)
    second = run(num_rounds=1, start_round=3)
    assert saved(first) + saved(second) == saved(whole) == [0.5, 1.25, 2.125, 3.0625]
    assert whole.best == [0.0, 0.5, 1.25]
    # Written anew at once, since the folder of a run is a new one.
    assert second.best == [1.25]
    assert read_summary(tmp_path).best == 0.75
    assert "server_state" not in second.persistence_manager.other_props
    (reason,) = run(num_rounds=1, start_round=3, epochs_per_round=2).panics
    assert "got 1 in the model and 2 in this job" in reason


def test_server_momentum_is_that_of_the_optimizer(federate):
    # 1, then 0.5 * 1 + 1 more.
    assert saved(federate(Hospital(1.0), server_momentum=0.5)) == [1.0, 2.5]
    assert saved(federate(Hospital(1.0), server_learning_rate=0.25)) == [0.25, 0.5]


def test_half_precision_is_summed_up_in_single(federate):
    class Half(Hospital):
        def __call__(self, task, message):
            result = super().__call__(task, message)
            if task == "train":
                result.params = {"w": np.full(2, 1000, np.float16)}
            return result

    # 1000 * 100 is beyond half precision.
    federation = federate(Half(steps=100), Half(steps=100), transfer="half_difference", num_rounds=1)
    assert saved(federation) == [1000.0]


def test_all_connected_sites_take_part():
    class Engine:
        def get_clients(self):
            return [type("Client", (), {"name": name}) for name in "abc"]

    controller = FederatedController(class_names=NAMES, num_clients=2)
    controller.engine, controller.info = Engine(), lambda _: None
    assert controller.sample_clients(2) == list("abc")
    assert isinstance(controller, FedAvg)


def test_the_model_learns_what_any_site_has_where_it_is_asked_to(federate, tmp_path, monkeypatch):
    monkeypatch.setattr("dinomix_monai.federated.server.controller.class_axes", lambda *_: {})
    union = {"class_names": [*NAMES, "vein"], "patch_voxels": [4, 0.5, 0.5]}
    one = Hospital(own_names=NAMES, labeled_voxels=[9, 1, 0], annotated=["liver"], **union)
    two = Hospital(own_names=["background", "vein"], labeled_voxels=[9, 0, 2], annotated=["vein"], **union)
    federation = federate(one, two, union_labels=True)
    assert federation.panics == []
    assert [task for task, _, _ in one.asked][:3] == ["labels", "handshake", "train"]
    assert [meta["plan"]["class_names"] for _, _, meta in one.asked] == [[], *[[*NAMES, "vein"]] * (len(one.asked) - 1)]
    assert federation.saved[-1][1]["class_names"] == [*NAMES, "vein"]
    assert sum(weights.shape == (3,) for weights in federation.model.state_dict().values()) == 1
    assert read_summary(tmp_path).taught_by == {"liver": ["site-1"], "vein": ["site-2"]}


@pytest.mark.parametrize("union_labels", [False, True])
def test_labels_that_cannot_be_joined_stop_the_run_before_it_begins(federate, union_labels):
    own_names = ["background", "vein", "liver"]
    federation = federate(
        Hospital(own_names=NAMES), Hospital(own_names=own_names, class_names=own_names), union_labels=union_labels
    )
    (reason,) = federation.panics
    assert ("got liver as 2 at site-2 and as 1" if union_labels else "`labels` must be the same everywhere") in reason
    assert not federation.saved


def test_a_run_goes_on_with_its_own_classes(federate, monkeypatch):
    from nvflare.app_common.abstract.model import make_model_learnable

    model = make_model_learnable({"w": np.zeros(2, np.float32)}, {"class_names": ["background", "vein"]})
    monkeypatch.setattr(Federation, "load", lambda self, context: model)
    (reason,) = federate(Hospital(), start_round=1).panics
    assert "got background, vein in the model and background, liver in this job" in reason
