"""A site of a federation: the bundle's own trainer, round by round."""

from __future__ import annotations

import math
import platform
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.engines.utils import IterationEvents
from monai.metrics import DiceMetric
from monai.utils.enums import CommonKeys as Keys

from dinomix_monai.core.epoch_table import read_table
from dinomix_monai.core.keys import MetricKeys
from dinomix_monai.core.tensor_file import load_tensors
from dinomix_monai.federated.bundle_network import config_files
from dinomix_monai.federated.plan import RunPlan
from dinomix_monai.federated.site_settings import SiteSettings
from dinomix_monai.federated.update import State, make_update, norm_names
from dinomix_monai.handlers import fast_forward_scheduler
from dinomix_monai.metrics.nan_means import nan_mean
from dinomix_monai.run.versions import package_version

__all__ = ["RoundResult", "Site"]

_PACKAGES = ("dinomix-monai", "monai", "torch", "timm", "numpy")
_NO_TEACHER = "none"


class RoundResult(NamedTuple):
    """What a round brought: the update, the optimizer steps taken, and losses by epoch for the curves."""

    update: State
    steps: int
    losses: list[dict[str, float]]


class Site:
    """
    Trains, validates and scores for the server, with what ``train.json`` and ``federated.json`` build.

    All that a site has of its own (EMA teacher, optimizer, projection heads, PIC with its donors and counts,
    thresholds, schedules) stays in its folder, where the bundle's ``RunStateSaver`` puts it after each epoch. A new
    process takes it up from there, so it does not matter whether rounds share a process. Random draws follow from seed
    and epoch.

    When the global model arrives, the student takes its weights. The EMA teacher of a site with labels stays what it
    is and follows the student from there; at a site without labels, which has nothing to teach it, it starts each
    round as the global model.

    Args:
        settings: what the site decides for itself.
        plan: what is the same at all sites.
    """

    def __init__(self, settings: SiteSettings, plan: RunPlan) -> None:
        self.settings = settings
        self.plan = plan
        self._workflow: ConfigWorkflow | None = None
        self._steps = 0

    def describe(self) -> dict[str, Any]:
        """
        What the handshake asks for: teacher, labels, shapes of the network, counts and versions, all of them plain
        numbers and text.

        Checks the data first, as every training does.

        Raises:
            ValueError: When there are errors in the data.
        """
        workflow = self._build("federated")
        datalist = self._parsed(workflow, "datalist")
        network = self._parsed(workflow, "network_def")
        has_teacher = self._parsed(workflow, "distillation_weight") > 0
        return {
            "teacher": self._parsed(workflow, "teacher").fingerprint if has_teacher else _NO_TEACHER,
            "class_names": list(datalist.class_names),
            "network": {name: list(value.shape) for name, value in network.state_dict().items()},
            "labeled_voxels": datalist.training_voxels,
            "patch_voxels": self._parsed(workflow, "patch_voxels"),
            "cases": {
                section: len(getattr(datalist, section)) for section in ("training", "unlabeled", "validation", "test")
            },
            "versions": {
                "python": platform.python_version(),
                **{name: package_version(name, "none") for name in _PACKAGES},
            },
        }

    def train(self, weights: State, round_number: int) -> RoundResult:
        """
        Trains for one round.

        Args:
            weights: the global model.
            round_number: counted from 0.

        Returns:
            Update, steps and losses. Without a step, which happens where there are no labels while pseudo-labels have
            no weight yet, the update is empty.
        """
        workflow = self._round_workflow(round_number)
        trainer = self._parsed(workflow, "train#trainer")
        weights = self._with_own_norms(trainer.network, weights, round_number)
        first_epoch = round_number * self.plan.epochs_per_round
        for handler in self._parsed(workflow, "round_handlers"):
            handler.anchor = weights

        trainer.network.load_state_dict(weights)
        if round_number == 0 or not trainer.has_labels:
            trainer.ema_teacher.module.load_state_dict(weights)
        # Also where rounds were missed or one broke off: schedules go by the rounds of the run.
        trainer.state.epoch = first_epoch
        trainer.state.iteration = first_epoch * trainer.state.epoch_length
        trainer.state.max_epochs = first_epoch + self.plan.epochs_per_round
        fast_forward_scheduler(self._parsed(workflow, "lr_scheduler"), trainer.state.iteration)
        self._steps = 0
        trainer.run()
        left_out = norm_names(trainer.network) if self.plan.local_norm else None
        update = make_update(trainer.network.state_dict(), weights, self.plan.transfer, left_out) if self._steps else {}
        return RoundResult(update, self._steps, _losses(self.settings.folder / "history.csv", first_epoch))

    def validate(self, weights: State, round_number: int) -> dict[str, float]:
        """
        Scores the global model on the site's validation cases, and keeps the best in ``models/model.pt``.

        Returns:
            The key metric; nothing where there are no cases or no class has a score.
        """
        workflow = self._round_workflow(round_number)
        network = self._parsed(workflow, "global_network")
        network.load_state_dict(self._with_own_norms(self._parsed(workflow, "network"), weights, round_number))
        if not self._parsed(workflow, "datalist").validation:
            self._parsed(workflow, "best_model_handler").write(network)
            return {}
        evaluator = self._parsed(workflow, "validate#evaluator")
        evaluator.run(max(1, round_number * self.plan.epochs_per_round))
        value = float(evaluator.state.metrics[MetricKeys.KEY])
        return {} if math.isnan(value) else {str(MetricKeys.KEY): value}

    def score(self, weights: State, own_norms: bool = False) -> dict[str, list[float]]:
        """
        Dice on the site's test cases, or on its validation cases if it has no others, on the grids that they came on.

        Args:
            weights: the model.
            own_norms: whether the site's own normalization layers belong to it, where the plan has it keep them.

        Returns:
            For each class that has a score, its mean Dice and the number of cases.
        """
        if own_norms and self.plan.local_norm:
            workflow = self._round_workflow(self.plan.rounds)
            weights = self._with_own_norms(self._parsed(workflow, "network"), weights, self.plan.rounds)
        cases = "$@datalist.test or @datalist.validation"
        workflow = self._build(**{"check_data": False, "report#handlers": [], "report#dataset#data": cases})
        datalist = self._parsed(workflow, "datalist")
        if not datalist.test and not datalist.validation:
            return {}
        self._parsed(workflow, "report#network").load_state_dict(dict(weights))
        evaluator = self._parsed(workflow, "report#evaluator")
        # A class that a case does not have has no score there, and a missed one 0: as the sound rule has it.
        metric = DiceMetric(include_background=False, reduction="none", num_classes=datalist.num_classes)

        def add_case() -> None:
            for output in evaluator.state.output:
                metric(y_pred=output[Keys.PRED][None], y=output[Keys.LABEL][None])

        evaluator.add_event_handler(Events.ITERATION_COMPLETED, add_case)
        evaluator.run()
        dice = torch.as_tensor(metric.aggregate()).cpu().numpy()
        named = zip(datalist.class_names[1:], nan_mean(dice, axis=0), np.isfinite(dice).sum(0))
        return {name: [float(mean), int(count)] for name, mean, count in named if count}

    def train_alone(self, weights: State) -> dict[str, list[float]]:
        """
        Trains by itself from the same weights for as many epochs as in the federation, and scores what comes of it.

        Returns:
            As :meth:`score`; nothing at a site without labels, which cannot train alone.
        """
        folder = self.settings.folder / "alone"
        own = {
            "output_dir": str(folder),
            "token_cache#folder": str(self.settings.folder / "tokens"),
            "check_data": False,
        }
        workflow = self._build(**own)
        if not self._parsed(workflow, "datalist").training:
            return {}
        trainer = self._parsed(workflow, "train#trainer")
        trainer.network.load_state_dict(weights)
        trainer.run()
        return self.score(load_tensors(folder / "models" / "model.pt"))

    def _round_workflow(self, round_number: int) -> ConfigWorkflow:
        """What trains and validates; it is built once for each process, with the state of earlier rounds."""
        if self._workflow is not None:
            return self._workflow
        changes: dict[str, Any] = {
            "check_data": False,
            "labeled_voxels": list(self.plan.labeled_voxels),
            "patch_voxels": list(self.plan.patch_voxels),
            "proximal_weight": self.plan.proximal_weight,
        }
        workflow = self._build("federated", **changes)
        if not self._parsed(workflow, "datalist").training:
            # There are no labeled donors.
            workflow.parser["mix#directions"] = {"unlabeled_to_unlabeled": 1.0}
        trainer = self._parsed(workflow, "train#trainer")
        trainer.add_event_handler(IterationEvents.MODEL_COMPLETED, self._count_step)
        # A state of an earlier run of the same name has no place in a new one.
        if round_number > 0 and Path(self._parsed(workflow, "state_file")).is_file():
            self._parsed(workflow, "resume_handler")(trainer)
        self._workflow = workflow
        return workflow

    def _build(self, *overlays: str, **changes: Any) -> ConfigWorkflow:
        root = self.settings.bundle_root
        settings = {
            "bundle_root": str(root),
            "output_dir": str(self.settings.folder),
            **self.plan.settings,
            "epochs": self.plan.epochs,
            **self.settings.overrides,
            **changes,
        }
        workflow = ConfigWorkflow(
            config_file=config_files(root, (*self.plan.overlays, *overlays)),
            meta_file=str(root / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type="train",
            **settings,
        )
        workflow.initialize()
        return workflow

    def _with_own_norms(self, network: torch.nn.Module, weights: State, round_number: int) -> State:
        weights = {name: torch.as_tensor(value) for name, value in weights.items()}
        if self.plan.local_norm and round_number > 0:
            own = network.state_dict()
            weights.update({name: own[name].detach().cpu().clone() for name in norm_names(network)})
        return weights

    def _count_step(self) -> None:
        self._steps += 1

    @staticmethod
    def _parsed(workflow: ConfigWorkflow, name: str) -> Any:
        return workflow.parser.get_parsed_content(name)


def _losses(history: Path, after_epoch: int) -> list[dict[str, float]]:
    rows = [row for row in read_table(history) if int(row["epoch"]) > after_epoch]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]
