"""The workflow at the server, which leads a run: the handshake, the rounds and the scores at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.abstract.model import ModelLearnableKey, make_model_learnable
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.fedavg import FedAvg

from dinomix_monai.core.files import write_json
from dinomix_monai.core.keys import MetricKeys
from dinomix_monai.federated.protocol import (
    ClassScores,
    MetaKeys,
    RunPlan,
    ScoredModel,
    SiteDescription,
    TaskName,
    bundle_network,
    class_axes,
)
from dinomix_monai.federated.server.agreement import check_agreement, union_of_labels, version_differences
from dinomix_monai.federated.server.class_rows import ClassRows
from dinomix_monai.federated.server.server_optimizer import ServerOptimizer
from dinomix_monai.federated.server.server_state import SERVER_STATE, ServerState
from dinomix_monai.federated.server.summary import SUMMARY_FILE, Summary
from dinomix_monai.federated.server.update_check import UpdateCheck

__all__ = ["FederatedController"]


class FederatedController(FedAvg):
    """
    Federated averaging, weighted by optimizer steps, with what hospitals need around it.

    A run begins with the handshake, which all sites must pass, see
    :func:`~dinomix_monai.federated.server.agreement.check_agreement`. The labeled voxels of all sites together, which
    the handshake brings, steer PIC, alignment and class weights at every site.

    All connected sites take part in each round. The server checks every update, and refuses a bad one without ending
    the round. The sites score each global model on their validation cases when it arrives, the last one in a task of
    its own, and the model with the best mean is kept. At the end the sites score, class by class, the model that the
    run began with, the best one, and what each of them reaches alone.

    The controller writes ``handshake.json``, ``refused.json`` and ``summary.json`` to the run's folder at the server.

    Args:
        class_names: names of the model's classes by label value, background first.
        union_labels: whether sites may have different classes. The model has ``class_names`` and, behind them, what
            else any site has; each site teaches what somebody has looked for there.
        num_clients: number of sites that must be connected.
        num_rounds: rounds to do now.
        start_round: number of the round to begin with; above 0 in a run that goes on from a checkpoint.
        epochs_per_round: see :class:`~dinomix_monai.federated.protocol.RunPlan`.
        settings: see :class:`~dinomix_monai.federated.protocol.RunPlan`.
        overlays: see :class:`~dinomix_monai.federated.protocol.RunPlan`.
        transfer: see :class:`~dinomix_monai.federated.protocol.RunPlan`.
        local_norm: see :class:`~dinomix_monai.federated.protocol.RunPlan`.
        fedprox_mu: weight of FedProx's term, ``None`` for none.
        teacher: fingerprint that the frozen teachers must have; empty to ask only that they are the same.
        min_responses: number of sites whose reply is enough for a task; 0 for all.
        grace_period: seconds that the other sites have left after ``min_responses`` sites have replied. The training
            alone has this time once for each round of the run.
        round_timeout: seconds after which a task goes on with the replies that have come, 0 for no limit. The training
            alone has this time once for each round of the run.
        handshake_timeout: seconds that the sites have for the handshake.
        norm_bound: see :class:`~dinomix_monai.federated.server.update_check.UpdateCheck`.
        server_learning_rate: ``learning_rate`` of
            :class:`~dinomix_monai.federated.server.server_optimizer.ServerOptimizer`.
        server_momentum: ``momentum`` of :class:`~dinomix_monai.federated.server.server_optimizer.ServerOptimizer`.
        unlabeled_share: largest share of the average that the sites without labels have together. Below it their steps
            count as much as those of the others.
        unlabeled_from_dice: updates of sites without labels count in a round whose global model has this mean Dice on
            the validation cases of the other sites, because a model that knows less teaches them nothing. Where there
            are no such cases they always count.
        unlabeled_learning_rate: see :class:`~dinomix_monai.federated.protocol.RunPlan`.
        compare_alone: whether each site also trains alone after the federation, which doubles the work.
        **kwargs: see ``nvflare.app_common.workflows.fedavg.FedAvg``.

    Raises:
        ValueError: When ``unlabeled_share`` or ``unlabeled_from_dice`` is not between 0 and 1, or ``min_responses`` is
            more than all sites.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        union_labels: bool = False,
        num_clients: int = 2,
        num_rounds: int = 4,
        start_round: int = 0,
        epochs_per_round: int = 1,
        settings: Mapping[str, Any] | None = None,
        overlays: Sequence[str] = (),
        transfer: str = "full",
        local_norm: bool = False,
        fedprox_mu: float | None = None,
        teacher: str = "",
        min_responses: int = 0,
        grace_period: int = 60,
        round_timeout: int = 0,
        handshake_timeout: int = 600,
        norm_bound: float = 0.0,
        server_learning_rate: float = 1.0,
        server_momentum: float = 0.0,
        unlabeled_share: float = 1 / 3,
        unlabeled_from_dice: float = 0.25,
        unlabeled_learning_rate: float = 0.5,
        compare_alone: bool = True,
        **kwargs: Any,
    ) -> None:
        if not 0 < unlabeled_share < 1:
            raise ValueError(f"unlabeled_share must be > 0 and < 1, got {unlabeled_share}.")
        if not 0 <= unlabeled_from_dice <= 1:
            raise ValueError(f"unlabeled_from_dice must be from 0 to 1, got {unlabeled_from_dice}.")
        if not 0 <= min_responses <= num_clients:
            raise ValueError(f"min_responses must be 0 to {num_clients}, the number of sites, got {min_responses}.")
        super().__init__(
            num_clients=num_clients, num_rounds=num_rounds, start_round=start_round, fedprox_mu=fedprox_mu, **kwargs
        )
        # NVFlare exports an argument only if an attribute has its name.
        self.class_names = list(class_names)
        self.union_labels = union_labels
        self.epochs_per_round = epochs_per_round
        self.settings = dict(settings or {})
        self.overlays = list(overlays)
        self.transfer = transfer
        self.local_norm = local_norm
        self.teacher = teacher
        self.min_responses = min_responses
        self.grace_period = grace_period
        self.round_timeout = round_timeout
        self.handshake_timeout = handshake_timeout
        self.norm_bound = norm_bound
        self.server_learning_rate = server_learning_rate
        self.server_momentum = server_momentum
        self.unlabeled_share = unlabeled_share
        self.unlabeled_from_dice = unlabeled_from_dice
        self.unlabeled_learning_rate = unlabeled_learning_rate
        self.compare_alone = compare_alone
        self._given_aggregation_weights: dict[str, float] = dict(kwargs.get("aggregation_weights") or {})
        self._update_check = UpdateCheck(norm_bound)
        self._server_optimizer = ServerOptimizer(server_learning_rate, server_momentum)
        self._plan = RunPlan(
            rounds=start_round + num_rounds,
            epochs_per_round=epochs_per_round,
            settings=self.settings,
            overlays=tuple(self.overlays),
            transfer=transfer,
            proximal_weight=fedprox_mu or 0.0,
            local_norm=local_norm,
            unlabeled_learning_rate=unlabeled_learning_rate,
        )
        self._taught_by: dict[str, list[str]] = {}
        self._class_rows = ClassRows({}, {})
        self._checkpoint_meta: dict[str, Any] = {}
        self._initial_weights: dict[str, np.ndarray] = {}
        self._global_weights: dict[str, np.ndarray] = {}
        self._state = ServerState(epochs_per_round)
        self._round_metrics: dict[str, float] = {}
        self._unlabeled: list[str] = []
        self._waiting: list[FLModel] = []
        self._refused_updates: list[dict[str, Any]] = []

    def run(self) -> None:
        """Leads the run from the handshake to the table of scores."""
        if not self._handshake():
            return
        super().run()
        if not self.abort_signal.triggered:
            self._score_at_the_end()

    def load_model(self) -> FLModel:
        """Loads the model that the run begins with, and keeps its weights for the comparison at the end."""
        if self.union_labels:
            # Only now the classes are known.
            self.persistor.model = bundle_network(len(self.class_names), self.overlays, self.settings)
        model = super().load_model()
        if self.start_round:
            self._take_up_state()
        # Copies of the dictionary, because each round changes this object.
        self._initial_weights, self._global_weights = dict(model.params), dict(model.params)
        # Updated in place, because the persistor holds this same dictionary.
        model.meta.update(self._checkpoint_meta, next_round=self.start_round)
        return model

    def sample_clients(self, num_clients: int | None = None) -> list[str]:
        """Names all connected sites, where ``FedAvg`` would draw ``num_clients`` of them at random."""
        return super().sample_clients(None)

    def send_model(
        self,
        task_name: str = TaskName.TRAIN,
        data: FLModel | None = None,
        targets: list[str] | None = None,
        min_responses: int | None = None,
        timeout: int = 0,
        callback: Any = None,
    ) -> None:
        """
        Begins a round: sends the global model with the run's plan to the sites, and does not wait.

        ``FedAvg`` calls this and cannot know how long to wait, so ``min_responses`` and ``timeout`` are not used.
        """
        assert data is not None
        self._round_metrics, self._waiting = {}, []
        data.meta = {**(data.meta or {}), str(MetaKeys.PLAN): self._plan.to_message()}
        self.broadcast_model(
            task_name=str(task_name),
            data=data,
            targets=targets,
            blocking=False,
            callback=callback,
            **self._reply_limits(),
        )

    def update_model(self, model: FLModel, aggr_result: FLModel) -> FLModel:
        """Moves the global model by the average of the round. Weights that no site has sent stay as they are."""
        is_difference = aggr_result.params_type == ParamsType.DIFF
        self._global_weights = self._server_optimizer.step(
            self._global_weights, aggr_result.params or {}, is_difference
        )
        if not aggr_result.params:
            self.warning(f"Round {self.current_round} has brought no update: the global model stays what it is.")
        aggr_result.params, aggr_result.params_type = self._global_weights, ParamsType.FULL
        aggr_result.meta = {
            **(aggr_result.meta or {}),
            **self._checkpoint_meta,
            "next_round": self.current_round + 1,
        }
        return super().update_model(model, aggr_result)

    def save_model(self, model: FLModel) -> None:
        """Saves the global model, and in the same file what the server has beside it."""
        self._state.velocity = self._server_optimizer.velocity
        entries = self.persistor.persistence_manager.other_props
        entries[SERVER_STATE] = self._state.to_file()
        super().save_model(model)
        # The file of the best model has none.
        del entries[SERVER_STATE]

    def _take_up_state(self) -> None:
        """Goes on with the best model and the momentum of the run that left the model."""
        content = self.persistor.persistence_manager.other_props.pop(SERVER_STATE, None)
        if content is None:
            return
        self._state = ServerState.from_file(content)
        self._server_optimizer.velocity = dict(self._state.velocity)
        if self._state.best_weights:
            # The run's folder is a new one, so its best model is written there, too.
            present = self.fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)
            best = make_model_learnable(dict(self._state.best_weights), self._checkpoint_meta)
            self.fl_ctx.set_prop(AppConstants.GLOBAL_MODEL, best, private=True, sticky=True)
            self.event(AppEventType.GLOBAL_BEST_MODEL_AVAILABLE)
            self.fl_ctx.set_prop(AppConstants.GLOBAL_MODEL, present, private=True, sticky=True)

    def _aggregate_one_result(self, result: FLModel) -> bool:
        site = result.meta["client_name"]
        if result.metrics and MetricKeys.KEY in result.metrics:
            self._round_metrics[site] = float(result.metrics[MetricKeys.KEY])
        if result.params:
            # Sums in half precision would overflow.
            result.params = {name: _in_single_precision(value) for name, value in result.params.items()}
            is_difference = result.params_type == ParamsType.DIFF
            reason = self._update_check.reason_to_refuse(result.params, self._global_weights, is_difference)
            if reason:
                self.warning(f"The update of {site} is refused in round {self.current_round}: {reason}.")
                self._refused_updates.append({"round": self.current_round, "site": site, "reason": reason})
                self._write_json("refused.json", self._refused_updates)
                return False
            result.params = self._class_rows.split(result.params, site)
            if site in self._unlabeled:
                # Whether it counts is known when the sites with labels have scored the model that taught it.
                self._waiting.append(result)
                return True
        return super()._aggregate_one_result(result)

    def _get_aggregated_result(self) -> FLModel:
        # The sites have scored the model that they were sent, which at this point still is the global model.
        score = self._keep_if_best(self._round_metrics)
        if score is None or score >= self.unlabeled_from_dice:
            for update in self._waiting:
                super()._aggregate_one_result(update)
        elif self._waiting:
            names = ", ".join(update.meta["client_name"] for update in self._waiting)
            self.info(
                f"Updates of {names} do not count yet: the global model teaches sites without labels from "
                f"{MetricKeys.KEY} {self.unlabeled_from_dice:g} on."
            )
        result = super()._get_aggregated_result()
        is_difference = result.params_type == ParamsType.DIFF
        result.params = self._class_rows.join(result.params or {}, self._global_weights, is_difference)
        return result

    def _keep_if_best(self, metrics: Mapping[str, float]) -> float | None:
        """Keeps the global model if it is the best, and returns its mean score; ``None`` where no site has one."""
        finite = [value for value in metrics.values() if np.isfinite(value)]
        if not finite:
            return None
        mean = sum(finite) / len(finite)
        self.info(f"Global model of round {self.current_round}: {MetricKeys.KEY} {mean:.4f} over {len(finite)} sites.")
        if self._state.best_metric is None or mean > self._state.best_metric:
            self._state.best_metric, self._state.best_weights = mean, dict(self._global_weights)
            self.event(AppEventType.GLOBAL_BEST_MODEL_AVAILABLE)
        return mean

    def _handshake(self) -> bool:
        """Makes the plan of the run from what the sites say of themselves; ``False`` if they cannot train together."""
        try:
            if self.union_labels:
                self.class_names = union_of_labels(
                    {site: answer["class_names"] for site, answer in self._ask(TaskName.LABELS).items()},
                    self.class_names,
                )
                self._plan = replace(self._plan, class_names=tuple(self.class_names))
            if self.start_round:
                self._check_goes_on()
            descriptions: dict[str, SiteDescription] = self._ask(TaskName.HANDSHAKE)
            num_channels = int(self.settings.get("num_channels", 1))
            voxels = check_agreement(descriptions, self.class_names, num_channels, self.teacher)
        except ValueError as error:
            self.panic(f"Handshake: {error}")
            return False
        for sentence in version_differences(descriptions):
            self.warning(f"Versions differ, {sentence}.")
        self._plan = replace(
            self._plan,
            labeled_voxels=tuple(voxels["labeled_voxels"]),
            patch_voxels=tuple(voxels["patch_voxels"]),
        )
        self._taught_by = {
            name: [site for site, each in descriptions.items() if each["labeled_voxels"][value]]
            for value, name in enumerate(self.class_names[1:], start=1)
        }
        self._unlabeled = [site for site, each in descriptions.items() if not any(each["labeled_voxels"])]
        self._class_rows = self._rows_of_classes(
            {site: each["annotated"] for site, each in descriptions.items() if site not in self._unlabeled}
        )
        num_labeled = len(descriptions) - len(self._unlabeled)
        weight = self.unlabeled_share / (1 - self.unlabeled_share) * num_labeled / max(len(self._unlabeled), 1)
        self.aggregation_weights = {
            **dict.fromkeys(self._unlabeled, min(weight, 1.0)),
            **self._given_aggregation_weights,
        }
        teacher = next(iter(descriptions.values()))["teacher"]
        self._checkpoint_meta = {
            "class_names": self.class_names,
            "num_channels": num_channels,
            "teacher": teacher,
            "rounds": self._plan.rounds,
            "settings": self.settings,
        }
        self.info(f"Handshake: {', '.join(descriptions)} agree; labeled voxels by class {voxels['labeled_voxels']}.")
        return True

    def _rows_of_classes(self, annotated: Mapping[str, Sequence[str]]) -> ClassRows:
        """How classes are kept apart in the average; not at all where all sites with labels know all of them."""
        known = {
            site: {0, *(value for value, name in enumerate(self.class_names) if name in names)}
            for site, names in annotated.items()
        }
        if all(len(values) == len(self.class_names) for values in known.values()):
            return ClassRows({}, {})
        return ClassRows(class_axes(len(self.class_names), self.overlays, self.settings), known)

    def _check_goes_on(self) -> None:
        known = (self.persistor.load(self.fl_ctx)[ModelLearnableKey.META] or {}).get("class_names")
        content = self.persistor.persistence_manager.other_props.get(SERVER_STATE)
        if content is not None and content["epochs_per_round"] != self.epochs_per_round:
            raise ValueError(
                "A run must go on with its own epochs_per_round, by which its schedules go, got "
                f"{content['epochs_per_round']} in the model and {self.epochs_per_round} in this job."
            )
        if known is not None and list(known) != self.class_names:
            raise ValueError(
                f"A run must go on with its own classes, got {', '.join(known)} in the model and "
                f"{', '.join(self.class_names)} in this job. Begin anew, or take the sites and `labels` of that run."
            )

    def _ask(self, task: TaskName) -> dict[str, Any]:
        """
        Asks all sites before there is a model.

        Raises:
            ValueError: When one is not ready or does not answer.
        """
        targets = self.sample_clients()
        replies = self._collect_replies(task, {}, timeout=self.handshake_timeout)
        answers = {site: meta[MetaKeys.ANSWER] for site, meta in replies.items() if MetaKeys.ANSWER in meta}
        errors = {site: meta[MetaKeys.ERROR] for site, meta in replies.items() if MetaKeys.ERROR in meta}
        self._write_json(f"{task}.json", {"sites": answers, "not_ready": errors})
        for site in targets:
            if site in errors:
                raise ValueError(f"{site} is not ready ({errors[site]}); its log says what is wrong.")
            if site not in answers:
                raise ValueError(f"{site} must answer the handshake in {self.handshake_timeout} s, got nothing.")
        return answers

    def _score_at_the_end(self) -> None:
        """Has the sites score the last model and compare the best one with its beginning and with training alone."""
        replies = self._collect_replies(TaskName.VALIDATE, self._global_weights)
        self.current_round = self.start_round + self.num_rounds
        self._keep_if_best(
            {site: meta[MetaKeys.ANSWER][MetricKeys.KEY] for site, meta in replies.items() if meta[MetaKeys.ANSWER]}
        )
        best = self._state.best_weights or self._global_weights
        scores = {
            ScoredModel.BEFORE: self._collect_scores(TaskName.SCORE, self._initial_weights, ScoredModel.BEFORE),
            ScoredModel.AFTER: self._collect_scores(TaskName.SCORE, best, ScoredModel.AFTER),
        }
        summary = self._write_summary(scores, is_whole=not self.compare_alone)
        if self.compare_alone:
            scores[ScoredModel.ALONE] = self._collect_scores(TaskName.ALONE, self._initial_weights, ScoredModel.ALONE)
            summary = self._write_summary(scores, is_whole=True)
        print(f"\n{summary}\nWritten to {self.get_run_dir()}", flush=True)

    def _write_summary(self, scores: Mapping[ScoredModel, Mapping[str, ClassScores]], is_whole: bool) -> Summary:
        by_model = {str(model): by_site for model, by_site in scores.items()}
        summary = Summary(self.class_names, self._state.best_metric, by_model, is_whole, self._taught_by)
        self._write_json(SUMMARY_FILE, asdict(summary))
        return summary

    def _collect_scores(self, task: TaskName, weights: Mapping[str, Any], model: ScoredModel) -> dict[str, ClassScores]:
        """The scores of a model by class at each site that has any, by the site's name."""
        replies = self._collect_replies(task, weights, model)
        return {site: meta[MetaKeys.ANSWER] for site, meta in replies.items() if meta[MetaKeys.ANSWER]}

    def _collect_replies(
        self, task: TaskName, weights: Mapping[str, Any], scored_model: str = "", timeout: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """
        Sends a task to all sites and waits for their replies.

        Args:
            task: the task.
            weights: weights to send; empty in the handshake.
            scored_model: which model this is, one of :class:`ScoredModel`; empty where it is not scored by class.
            timeout: seconds to wait for all sites; by default the limits of a round apply.

        Returns:
            Meta data of the reply of each site that has replied, by the site's name.
        """
        current_round = self.start_round + (self.num_rounds if weights else 0)
        meta = {str(MetaKeys.PLAN): self._plan.to_message(), str(MetaKeys.SCORED_MODEL): str(scored_model)}
        message = FLModel(params=dict(weights), current_round=current_round, total_rounds=self._plan.rounds, meta=meta)
        # A training alone is as long as all rounds together.
        rounds = self._plan.rounds if task == TaskName.ALONE else 1
        limits = self._reply_limits(rounds) if timeout is None else {"timeout": timeout}
        results = self.broadcast_model(task_name=str(task), data=message, targets=self.sample_clients(), **limits)
        return {result.meta["client_name"]: result.meta for result in sorted(results, key=_site_name)}

    def _reply_limits(self, rounds: int = 1) -> dict[str, Any]:
        """How long and for how many replies NVFlare waits in a task that is as long as so many rounds."""
        return {
            "timeout": rounds * self.round_timeout,
            "min_responses": self.min_responses or None,
            "wait_time_after_min_received": rounds * self.grace_period if self.min_responses else 0,
        }

    def _write_json(self, name: str, content: Any) -> None:
        write_json(Path(self.get_run_dir(), name), content)


def _site_name(result: FLModel) -> str:
    return str(result.meta["client_name"])


def _in_single_precision(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float16 else array
