"""The workflow at the server: handshake, rounds, the best model, and what federation brought."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
from nvflare.app_common.app_event_type import AppEventType
from nvflare.app_common.workflows.fedavg import FedAvg

from dinomix_monai.core.keys import MetricKeys
from dinomix_monai.federated.protocol import MetaKeys, Models, RunPlan, Tasks
from dinomix_monai.federated.server.agreement import check_agreement, version_differences
from dinomix_monai.federated.server.server_optimizer import ServerOptimizer
from dinomix_monai.federated.server.summary import federation_table
from dinomix_monai.federated.server.update_check import UpdateCheck

__all__ = ["FederatedController"]


class FederatedController(FedAvg):
    """
    Federated averaging by steps, with what hospitals need around it.

    A run begins with a handshake that all sites must pass, see
    :func:`~dinomix_monai.federated.server.agreement.check_agreement`; the labeled voxels of all sites together steer
    PIC at each. Then come the rounds. All connected sites take part in each; what a site sends is checked, and refused
    if need be, without an end of the round. The model that arrives at the sites is scored by them, the last one too,
    and the best is kept. At the end the model of the beginning and the best one are scored by class, and beside them
    what each site reaches alone.

    It writes ``handshake.json``, ``refused.json`` and ``summary.json`` to the run's folder at the server.

    Args:
        class_names: names by label value of the model, background first.
        num_clients: sites that must be there.
        num_rounds: rounds to do now.
        start_round: the round to begin with, where a run goes on.
        epochs_per_round: see :class:`~dinomix_monai.federated.protocol.RunPlan`.
        settings: see :class:`~dinomix_monai.federated.protocol.RunPlan`.
        overlays: see :class:`~dinomix_monai.federated.protocol.RunPlan`.
        transfer: see :class:`~dinomix_monai.federated.protocol.RunPlan`.
        local_norm: see :class:`~dinomix_monai.federated.protocol.RunPlan`.
        fedprox_mu: weight of FedProx's term, ``None`` for none.
        teacher: fingerprint that the frozen teachers must have; empty to ask only that they are the same.
        min_responses: sites whose answer is enough for a round; 0 for all.
        grace_period: seconds that the others have after ``min_responses`` sites have answered; for a training alone
            as many times as there are rounds.
        round_timeout: seconds after which a round goes on with those that have answered, likewise; 0 for none.
        handshake_timeout: seconds for the handshake.
        norm_bound: see :class:`~dinomix_monai.federated.server.update_check.UpdateCheck`.
        server_learning_rate: see :class:`~dinomix_monai.federated.server.server_optimizer.ServerOptimizer`.
        server_momentum: see :class:`~dinomix_monai.federated.server.server_optimizer.ServerOptimizer`.
        unlabeled_site_weight: what a step of a site without labels counts in the average, beside one of a site with
            labels. Its model drifts with what it takes for labels, most of all while the global model knows little.
        compare_alone: whether each site trains alone, too, after the federation; as much work again.
        **kwargs: see ``nvflare.app_common.workflows.fedavg.FedAvg``.

    Raises:
        ValueError: When ``unlabeled_site_weight`` is not positive.
    """

    def __init__(
        self,
        class_names: Sequence[str],
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
        unlabeled_site_weight: float = 0.2,
        compare_alone: bool = True,
        **kwargs: Any,
    ) -> None:
        if not unlabeled_site_weight > 0:
            raise ValueError(f"unlabeled_site_weight must be > 0, got {unlabeled_site_weight}.")
        super().__init__(
            num_clients=num_clients, num_rounds=num_rounds, start_round=start_round, fedprox_mu=fedprox_mu, **kwargs
        )
        # Each under its own name, by which the job's export finds it.
        self.class_names = list(class_names)
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
        self.unlabeled_site_weight = unlabeled_site_weight
        self.compare_alone = compare_alone
        self._given_weights: dict[str, float] = dict(kwargs.get("aggregation_weights") or {})
        self._check = UpdateCheck(norm_bound)
        self._optimizer = ServerOptimizer(server_learning_rate, server_momentum)
        self._plan = self._make_plan({})
        self._identity: dict[str, Any] = {}
        self._initial: dict[str, np.ndarray] = {}
        self._global: dict[str, np.ndarray] = {}
        self._best: dict[str, np.ndarray] = {}
        self._best_metric: float | None = None
        self._metrics: dict[str, float] = {}
        self._refused: list[dict[str, Any]] = []

    def run(self) -> None:
        """Runs the federation."""
        if not self._handshake():
            return
        super().run()
        if not self.abort_signal.triggered:
            self._finish()

    def load_model(self) -> FLModel:
        """The model to begin with, which is remembered."""
        model = super().load_model()
        # Copies, because the rounds change this very object.
        self._initial, self._global = dict(model.params), dict(model.params)
        # In place, because what has been handed to the persistor is this very dictionary.
        model.meta.update(self._identity, next_round=self.start_round)
        return model

    def sample_clients(self, num_clients: int | None = None) -> list[str]:
        """All connected sites; ``FedAvg`` would draw ``num_clients`` of them at random."""
        return super().sample_clients(None)

    def send_model(
        self,
        task_name: str = Tasks.TRAIN,
        data: FLModel | None = None,
        targets: list[str] | None = None,
        min_responses: int | None = None,
        timeout: int = 0,
        callback: Any = None,
    ) -> None:
        """Begins a round at the sites."""
        assert data is not None
        self._metrics = {}
        data.meta = {**(data.meta or {}), str(MetaKeys.PLAN): self._plan.to_message()}
        self.broadcast_model(
            task_name=str(task_name), data=data, targets=targets, blocking=False, callback=callback, **self._patience()
        )

    def update_model(self, model: FLModel, aggr_result: FLModel) -> FLModel:
        """Moves the global model, which stays whole whatever the sites have sent."""
        is_difference = aggr_result.params_type == ParamsType.DIFF
        self._global = self._optimizer.step(self._global, aggr_result.params or {}, is_difference)
        if not aggr_result.params:
            self.warning(f"Round {self.current_round} has brought no update: the global model stays what it is.")
        aggr_result.params, aggr_result.params_type = self._global, ParamsType.FULL
        aggr_result.meta = {**(aggr_result.meta or {}), **self._identity, "next_round": self.current_round + 1}
        return super().update_model(model, aggr_result)

    def _aggregate_one_result(self, result: FLModel) -> bool:
        site = result.meta["client_name"]
        if result.metrics and MetricKeys.KEY in result.metrics:
            self._metrics[site] = float(result.metrics[MetricKeys.KEY])
        if result.params:
            # In single precision before anything is summed up: half precision would overflow.
            result.params = {name: _in_single_precision(value) for name, value in result.params.items()}
            reason = self._check(result.params, self._global, result.params_type == ParamsType.DIFF)
            if reason:
                self.warning(f"The update of {site} is refused in round {self.current_round}: {reason}.")
                self._refused.append({"round": self.current_round, "site": site, "reason": reason})
                self._write("refused.json", self._refused)
                return False
        return super()._aggregate_one_result(result)

    def _get_aggregated_result(self) -> FLModel:
        # Before the update, because what the sites have scored is the model that they were sent.
        self._keep_if_best(self._metrics)
        return super()._get_aggregated_result()

    def _keep_if_best(self, metrics: Mapping[str, float]) -> None:
        finite = [value for value in metrics.values() if np.isfinite(value)]
        if not finite:
            return
        mean = sum(finite) / len(finite)
        self.info(f"Global model of round {self.current_round}: {MetricKeys.KEY} {mean:.4f} over {len(finite)} sites.")
        if self._best_metric is None or mean > self._best_metric:
            self._best_metric, self._best = mean, dict(self._global)
            self.event(AppEventType.GLOBAL_BEST_MODEL_AVAILABLE)

    def _handshake(self) -> bool:
        targets = self.sample_clients()
        replies = self._ask(Tasks.HANDSHAKE, {}, timeout=self.handshake_timeout)
        answers = {site: meta[MetaKeys.ANSWER] for site, meta in replies.items() if MetaKeys.ANSWER in meta}
        errors = {site: meta[MetaKeys.ERROR] for site, meta in replies.items() if MetaKeys.ERROR in meta}
        self._write("handshake.json", {"sites": answers, "not_ready": errors})
        try:
            for site in targets:
                if site in errors:
                    raise ValueError(f"{site} is not ready ({errors[site]}); its log says what is wrong.")
                if site not in answers:
                    raise ValueError(f"{site} must answer the handshake in {self.handshake_timeout} s, got nothing.")
            voxels = check_agreement(answers, self.class_names, self.teacher)
        except ValueError as error:
            self.panic(f"Handshake: {error}")
            return False
        for sentence in version_differences(answers):
            self.warning(f"Versions differ, {sentence}.")
        self._plan = self._make_plan(voxels)
        unlabeled = [site for site, answer in answers.items() if not any(answer["labeled_voxels"])]
        self.aggregation_weights = {**dict.fromkeys(unlabeled, self.unlabeled_site_weight), **self._given_weights}
        teacher = next(iter(answers.values()))["teacher"]
        self._identity = {"class_names": self.class_names, "teacher": teacher, "rounds": self._plan.rounds}
        self.info(f"Handshake: {', '.join(answers)} agree; labeled voxels by class {voxels['labeled_voxels']}.")
        return True

    def _finish(self) -> None:
        last = self._ask(Tasks.VALIDATE, self._global)
        self.current_round = self.start_round + self.num_rounds
        self._keep_if_best(
            {site: meta[MetaKeys.ANSWER][MetricKeys.KEY] for site, meta in last.items() if meta[MetaKeys.ANSWER]}
        )
        best = self._best or self._global
        scores = {
            Models.BEFORE: self._score(Tasks.SCORE, self._initial, Models.BEFORE),
            Models.AFTER: self._score(Tasks.SCORE, best, Models.AFTER),
        }
        self._write_summary(scores)
        if self.compare_alone:
            scores[Models.ALONE] = self._score(Tasks.ALONE, self._initial, Models.ALONE)
            self._write_summary(scores)
        table = federation_table(self.class_names, {str(name): of for name, of in scores.items()})
        print(
            f"\nDice of the global model before and after federation, and of each site's own model alone\n{table}\n"
            f"Written to {self.get_run_dir()}",
            flush=True,
        )

    def _write_summary(self, scores: Mapping[Models, Any]) -> None:
        self._write(
            "summary.json", {"best": self._best_metric, "scores": {str(name): of for name, of in scores.items()}}
        )

    def _score(self, task: Tasks, params: Mapping[str, Any], name: Models) -> dict[str, Any]:
        replies = self._ask(task, params, name)
        return {site: meta[MetaKeys.ANSWER] for site, meta in replies.items() if meta[MetaKeys.ANSWER]}

    def _ask(
        self, task: Tasks, params: Mapping[str, Any], name: str = "", timeout: int | None = None
    ) -> dict[str, dict[str, Any]]:
        """Asks all sites and returns the meta data of the answers by site."""
        current_round = self.start_round + (self.num_rounds if params else 0)
        meta = {str(MetaKeys.PLAN): self._plan.to_message(), str(MetaKeys.NAME): str(name)}
        message = FLModel(params=dict(params), current_round=current_round, total_rounds=self._plan.rounds, meta=meta)
        # A training alone is as long as all rounds together.
        rounds = self._plan.rounds if task == Tasks.ALONE else 1
        patience = self._patience(rounds) if timeout is None else {"timeout": timeout}
        results = self.broadcast_model(task_name=str(task), data=message, targets=self.sample_clients(), **patience)
        return {result.meta["client_name"]: result.meta for result in sorted(results, key=_client_name)}

    def _patience(self, rounds: int = 1) -> dict[str, Any]:
        return {
            "timeout": rounds * self.round_timeout,
            "min_responses": self.min_responses or None,
            "wait_time_after_min_received": rounds * self.grace_period if self.min_responses else 0,
        }

    def _make_plan(self, voxels: Mapping[str, Sequence[float]]) -> RunPlan:
        return RunPlan(
            rounds=self.start_round + self.num_rounds,
            epochs_per_round=self.epochs_per_round,
            settings=self.settings,
            overlays=tuple(self.overlays),
            transfer=self.transfer,
            proximal_weight=self.fedprox_mu or 0.0,
            local_norm=self.local_norm,
            **{name: tuple(numbers) for name, numbers in voxels.items()},
        )

    def _write(self, name: str, content: Any) -> None:
        Path(self.get_run_dir(), name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _client_name(result: FLModel) -> str:
    return str(result.meta["client_name"])


def _in_single_precision(value: Any) -> np.ndarray:
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype == np.float16 else array
