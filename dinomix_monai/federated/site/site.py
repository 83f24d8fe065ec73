"""A site of a federation: it trains, validates and scores with the bundle's own trainer."""

from __future__ import annotations

import logging
import math
import platform
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow
from monai.metrics import compute_dice
from monai.utils.enums import CommonKeys as Keys

from dinomix_monai.core.epoch_table import read_table
from dinomix_monai.core.keys import MetricKeys
from dinomix_monai.core.known_voxels import known_masks
from dinomix_monai.core.tensor_file import load_tensors
from dinomix_monai.core.text import by
from dinomix_monai.data import Datalist
from dinomix_monai.federated.protocol import RunPlan, SiteDescription, SiteLabels
from dinomix_monai.federated.site.site_settings import SiteSettings
from dinomix_monai.federated.site.update import Weights, make_update, normalization_names
from dinomix_monai.handlers import fast_forward_scheduler
from dinomix_monai.metrics.nan_means import nan_mean
from dinomix_monai.run.versions import package_version

__all__ = ["RoundResult", "Site"]

logger = logging.getLogger(__name__)

_REPORTED_PACKAGES = ("dinomix-monai", "monai", "torch", "timm", "numpy")
_NO_TEACHER = "none"


class RoundResult(NamedTuple):
    """
    What a round at a site brought.

    Args:
        update: the student's weights or their change, see
            :func:`~dinomix_monai.federated.site.update.make_update`; empty without a step.
        steps: optimizer steps that the site took.
        losses: rows of ``history.csv``, one for each epoch of the round.
    """

    update: Weights
    steps: int
    losses: list[dict[str, float]]


class Site:
    """
    Performs the server's tasks with what ``train.json`` and ``federated.json`` build.

    What a site has of its own (EMA teacher, optimizer, projection heads, PIC with its donors and counts, thresholds,
    schedules) stays in its folder, where the bundle's ``RunStateSaver`` writes it after each epoch. A new process reads
    it there, so it does not matter whether rounds share a process. Random draws follow from the seed and the epoch.

    When a global model arrives, the student takes its weights. The EMA teacher of a site that knows all classes keeps
    its own weights and follows the student from there. Where nobody has looked for some classes, and at a site without
    labels, nothing would correct it, so the global model itself is the teacher for the whole round. The student of a
    site without labels makes shorter steps: Adam's are as long as its learning rate, however weak the loss is.

    Args:
        settings: what the site decides for itself.
        plan: what is the same at all sites.
    """

    def __init__(self, settings: SiteSettings, plan: RunPlan) -> None:
        self.settings = settings
        self.plan = plan
        self._training: ConfigWorkflow | None = None
        self._optimizer_steps = 0

    def labels(self) -> SiteLabels:
        """Answers which classes the site has."""
        workflow = self._build_workflow("federated", check_data=False)
        return {"class_names": list(self._resolve(workflow, "datalist").class_names)}

    def describe(self) -> SiteDescription:
        """
        Answers the handshake, after a check of the data as every training makes it.

        Raises:
            ValueError: When there are errors in the data.
        """
        workflow = self._build_workflow("federated")
        datalist = self._resolve(workflow, "datalist")
        network = self._resolve(workflow, "network_def")
        has_teacher = self._resolve(workflow, "distillation_weight") > 0
        if not datalist.is_phantom and "spacing_mm" in self._resolve(workflow, "plan").asked:
            logger.warning(
                "The voxel size of %s mm is that of the phantom, because the federation was given none, and small "
                "organs may be missed. Run `python -m dinomix_monai configure` at a site, and pass the numbers of its "
                "plan to all: --settings \"{'spacing_mm': [2.0, 2.0, 3.0], ...}\".",
                by(self._resolve(workflow, "spacing_mm")),
            )
        return {
            "teacher": self._resolve(workflow, "teacher").fingerprint if has_teacher else _NO_TEACHER,
            "class_names": list(datalist.class_names),
            "annotated": [datalist.class_names[value] for value in datalist.looked_for],
            "channel_names": list(
                datalist.channel_names if datalist.has_channel_names else [""] * datalist.num_channels
            ),
            "network": {name: list(value.shape) for name, value in network.state_dict().items()},
            "labeled_voxels": datalist.training_voxels,
            "patch_voxels": self._resolve(workflow, "pseudo_labeler#labeled_voxels"),
            "cases": {
                section: len(getattr(datalist, section)) for section in ("training", "unlabeled", "validation", "test")
            },
            "versions": {
                "python": platform.python_version(),
                **{name: package_version(name, "none") for name in _REPORTED_PACKAGES},
            },
        }

    def train(self, weights: Weights, round_number: int) -> RoundResult:
        """
        Trains the global model for one round.

        Args:
            weights: weights of the global model.
            round_number: counted from 0.

        Returns:
            The update, the number of steps and the losses. A site without labels takes no step while pseudo-labels have
            no weight yet and nothing is distilled, and its update is empty.
        """
        workflow = self._training_workflow(round_number)
        trainer = self._resolve(workflow, "train#trainer")
        weights = self._with_local_norm(trainer.network, weights, round_number)
        first_epoch = round_number * self.plan.epochs_per_round
        for handler in self._resolve(workflow, "round_handlers"):
            handler.anchor = weights

        trainer.network.load_state_dict(weights)
        if round_number == 0 or not self._knows_all(workflow):
            trainer.ema_teacher.module.load_state_dict(weights)
        # Schedules go by the rounds of the run, also at a site that missed a round or broke one off.
        trainer.state.epoch = first_epoch
        trainer.state.iteration = first_epoch * trainer.state.epoch_length
        trainer.state.max_epochs = first_epoch + self.plan.epochs_per_round
        fast_forward_scheduler(self._resolve(workflow, "train#lr_scheduler"), trainer.state.iteration)
        self._optimizer_steps = 0
        trainer.run()
        update: Weights = {}
        if self._optimizer_steps:
            kept_names = normalization_names(trainer.network) if self.plan.local_norm else ()
            update = make_update(trainer.network.state_dict(), weights, self.plan.transfer, kept_names)
        losses = _read_losses(self.settings.folder / "history.csv", first_epoch)
        return RoundResult(update, self._optimizer_steps, losses)

    def validate(self, weights: Weights, round_number: int) -> dict[str, float]:
        """
        Scores the global model on the site's validation cases, and keeps the best one in ``models/model.pt``.

        Args:
            weights: weights of the global model.
            round_number: counted from 0.

        Returns:
            The mean Dice under the name of the key metric; empty if there are no cases or no class has a score.
        """
        workflow = self._training_workflow(round_number)
        network = self._resolve(workflow, "global_network")
        network.load_state_dict(self._with_local_norm(self._resolve(workflow, "network"), weights, round_number))
        if not self._resolve(workflow, "datalist").validation:
            self._resolve(workflow, "validate#best_model").write(network)
            return {}
        evaluator = self._resolve(workflow, "validate#evaluator")
        evaluator.run(max(1, round_number * self.plan.epochs_per_round))
        value = float(evaluator.state.metrics[MetricKeys.KEY])
        return {} if math.isnan(value) else {str(MetricKeys.KEY): value}

    def score(self, weights: Weights, with_local_norm: bool = False) -> dict[str, list[float]]:
        """
        Scores a model class by class on the site's test cases, on the grids that they came on.

        A site without test cases scores the model on its validation cases.

        Args:
            weights: weights of the model.
            with_local_norm: whether the site's own normalization layers replace those of the model, provided that the
                plan leaves these layers at the site.

        Returns:
            For the name of each class that has a score, the mean Dice and the number of cases that the mean is over.
        """
        if with_local_norm and self.plan.local_norm:
            workflow = self._training_workflow(self.plan.rounds)
            weights = self._with_local_norm(self._resolve(workflow, "network"), weights, self.plan.rounds)
        cases = "$@datalist.test or @datalist.validation"
        workflow = self._build_workflow(**{"check_data": False, "report#handlers": [], "report#dataset#data": cases})
        datalist = self._resolve(workflow, "datalist")
        if not datalist.test and not datalist.validation:
            return {}
        self._resolve(workflow, "report#network").load_state_dict(dict(weights))
        evaluator = self._resolve(workflow, "report#evaluator")
        dice_of_cases: list[list[float]] = []

        def add_case() -> None:
            for output in evaluator.state.output:
                dice_of_cases.append(_dice_by_class(output[Keys.PRED], output[Keys.LABEL], datalist))

        evaluator.add_event_handler(Events.ITERATION_COMPLETED, add_case)
        evaluator.run()
        dice = np.array(dice_of_cases)
        named = zip(datalist.class_names[1:], nan_mean(dice, axis=0), np.isfinite(dice).sum(0))
        return {name: [float(mean), int(count)] for name, mean, count in named if count}

    def train_alone(self, weights: Weights) -> dict[str, list[float]]:
        """
        Trains a model without the other sites, for as many epochs as the whole run has, and scores it.

        Args:
            weights: weights that the training begins with.

        Returns:
            The scores as :meth:`score` returns them; empty at a site without labels, which cannot train alone.
        """
        folder = self.settings.folder / "alone"
        changes = {
            "output_dir": str(folder),
            "token_cache#folder": str(self.settings.folder / "tokens"),
            "check_data": False,
        }
        workflow = self._build_workflow(**changes)
        if not self._resolve(workflow, "datalist").training:
            return {}
        trainer = self._resolve(workflow, "train#trainer")
        trainer.network.load_state_dict(weights)
        trainer.run()
        return self.score(load_tensors(folder / "models" / "model.pt"))

    def _training_workflow(self, round_number: int) -> ConfigWorkflow:
        """
        The bundle's workflow that trains and validates in all rounds.

        It is built once in a process. After the first round it takes up the state that an earlier process has written.
        """
        if self._training is not None:
            return self._training
        changes: dict[str, Any] = {
            "check_data": False,
            "labeled_voxels": list(self.plan.labeled_voxels),
            "pseudo_labeler#labeled_voxels": list(self.plan.patch_voxels),
            "proximal_weight": self.plan.proximal_weight,
        }
        workflow = self._build_workflow("federated", **changes)
        if not self._knows_all(workflow):
            # The EMA teacher does not follow the student.
            workflow.parser["train#handlers#4#_disabled_"] = True
        if not self._resolve(workflow, "datalist").training:
            workflow.parser["optimizer#lr"] = f"$@learning_rate * {self.plan.unlabeled_learning_rate}"
            if workflow.parser["mix"] is not None:
                # PIC finds no labeled donors at this site.
                workflow.parser["mix#directions"] = {"unlabeled_to_unlabeled": 1.0}
        trainer = self._resolve(workflow, "train#trainer")
        trainer.optimizer.register_step_post_hook(self._count_optimizer_step)
        # In its first round a run begins anew, whatever state an earlier run has left in the folder.
        if round_number > 0 and Path(self._resolve(workflow, "state_file")).is_file():
            self._resolve(workflow, "resume_handler")(trainer)
        self._training = workflow
        return workflow

    def _build_workflow(self, *overlays: str, **changes: Any) -> ConfigWorkflow:
        settings = {
            "output_dir": str(self.settings.folder),
            # All sites have the same settings, whatever their scans are like.
            "planned_for": None,
            **self.plan.settings,
            "epochs": self.plan.epochs,
            **self.settings.overrides,
            **changes,
        }
        if self.plan.class_names:
            # In a tuple MONAI evaluates nothing.
            settings["datalist#class_names"] = tuple(self.plan.class_names)
        workflow = self.settings.bundle.workflow("train", *self.plan.overlays, *overlays, **settings)
        workflow.initialize()
        return workflow

    def _knows_all(self, workflow: ConfigWorkflow) -> bool:
        """Whether somebody has looked for all classes at this site."""
        datalist = self._resolve(workflow, "datalist")
        return len(datalist.looked_for) == datalist.num_classes - 1

    def _with_local_norm(self, network: torch.nn.Module, weights: Weights, round_number: int) -> Weights:
        """
        The weights as tensors, from the second round on with the normalization layers of ``network`` if the plan leaves
        them at the site.
        """
        weights = {name: torch.as_tensor(value) for name, value in weights.items()}
        if self.plan.local_norm and round_number > 0:
            own = network.state_dict()
            weights.update({name: own[name].detach().cpu().clone() for name in normalization_names(network)})
        return weights

    def _count_optimizer_step(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        # A step that is left out has no gradients, or, with a gradient scaler, never comes here.
        if any(parameter.grad is not None for group in optimizer.param_groups for parameter in group["params"]):
            self._optimizer_steps += 1

    @staticmethod
    def _resolve(workflow: ConfigWorkflow, config_id: str) -> Any:
        return workflow.parser.get_parsed_content(config_id)


def _dice_by_class(prediction: torch.Tensor, label: torch.Tensor, datalist: Datalist) -> list[float]:
    """
    Dice of each foreground class by label maps (1, H, W, D), where somebody has looked for it.

    As in the rule of scoring named "sound", a class that is not in the label has none, NaN, and one that the model
    misses has a Dice of 0.
    """
    possible, scores = datalist.possible, []
    for value in range(1, datalist.num_classes):
        found, expected = known_masks(prediction, label, value, possible)
        scores.append(float(compute_dice(found[None], expected[None], include_background=True)))
    return scores


def _read_losses(history: Path, after_epoch: int) -> list[dict[str, float]]:
    rows = [row for row in read_table(history) if int(row["epoch"]) > after_epoch]
    return [{name: float(value) for name, value in row.items() if value} for row in rows]
