"""A training of the app's model on what the annotators have labeled so far."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.engines import SupervisedEvaluator

from dinomix_monai.core.epoch_table import read_table
from dinomix_monai.core.files import write_json
from dinomix_monai.core.keys import MetricKeys
from dinomix_monai.data import Finding, check_dataset, findings_table
from dinomix_monai.handlers import BestModelHandler
from dinomix_monai.label.app_folder import AppFolder
from dinomix_monai.label.refusal import Refusal
from dinomix_monai.models import load_model, probe_path
from dinomix_monai.planning import DatasetPlan
from dinomix_monai.run import read_configuration
from dinomix_monai.transforms import scaling_window

__all__ = ["TrainingResult", "TrainingRun", "latest_progress"]

# Settings that go by the scans and that inference shares, or that belong to them.
_PLANNED = (
    *("spacing_mm", "patch_size", "scale_intensity", "flip_prob", "token_cell"),
    *("network_def#stem_stride", "network_def#strides", "distiller#modules"),
)


@dataclass(frozen=True)
class TrainingResult:
    """
    How a training ended.

    Args:
        run: folder of the training.
        labeled: number of labeled scans that it learned from.
        unlabeled: number of unlabeled scans that it learned from.
        validation: number of labeled scans that it was judged by.
        replaced: whether its model is the app's current one now.
        score: key metric of its best epoch, ``None`` without validation.
        score_before: key metric of the model that was there before on the same scans, ``None`` likewise.
        warnings: what may be wrong with the scans, or with the settings that were planned by them, as text.
    """

    run: str
    labeled: int
    unlabeled: int
    validation: int
    replaced: bool
    score: float | None
    score_before: float | None
    warnings: list[str]


class TrainingRun:
    """
    Trains with the bundle's ``train.json`` in a folder of its own, and then moves the model to its place.

    Until that move the app's model stays what it was, whatever happens. With validation scans it is replaced only by
    one that scores higher on them than itself; without, by the one of the last epoch.

    Whether a labeled scan is for validation is decided by a hash of its name, once and for all: no scan that a model
    has learned from judges a later one.

    An app without a model plans the settings that it does not have by the labels of its first training, prints them
    with their reasons, and keeps both in its settings.

    Args:
        folder: folder of the app.
        labeled: ``name``, and paths of ``image`` and ``label``, of each labeled scan; ``annotated`` and
            ``annotated_slices`` of one whose label is not complete.
        unlabeled: paths of the other scans.
        validation_share: share of the labeled scans that validate, 0 for none.

    Raises:
        Refusal: When no scan has a label or none of them is left to learn from, or ``validation_share`` is not in
            [0, 1).
    """

    def __init__(
        self,
        folder: AppFolder,
        labeled: Sequence[dict[str, Any]],
        unlabeled: Sequence[str],
        validation_share: float = 0.0,
    ) -> None:
        if not 0 <= validation_share < 1:
            raise Refusal(f"val_split must be in [0, 1), got {validation_share}.")
        if not labeled:
            raise Refusal(
                f"Training needs at least one scan with a label of tag final, got none among {len(unlabeled)} scans. "
                "Save one, and train again."
            )
        self.folder = folder
        self.validation = [case for case in labeled if _validates(case["name"], validation_share)]
        self.training = [case for case in labeled if case not in self.validation]
        self.unlabeled = [{"image": image} for image in unlabeled]
        if not self.training:
            raise Refusal(
                f"Training needs at least one labeled scan beside those for validation, got {len(labeled)} labeled, "
                f"all for validation with val_split {validation_share}. Label more, or lower val_split."
            )
        self.plan = DatasetPlan()
        self.path = folder.runs / datetime.now().strftime("%Y%m%d-%H%M%S-%f")

    def __call__(
        self, epochs: int | None = None, pretrained: bool = True, device: str = "cpu", seed: int = 0
    ) -> TrainingResult:
        """
        Checks the scans, trains, and replaces the model.

        Args:
            epochs: length of the training; by default that of the configuration.
            pretrained: whether to begin with the current model, if there is one.
            device: device to train on.
            seed: seed of the training.

        Raises:
            Refusal: When the check finds an error, the app's model does not fit its settings, or ``epochs`` is below 1.
        """
        if epochs is not None and epochs < 1:
            raise Refusal(f"max_epochs must be >= 1, got {epochs}.")
        self.path.mkdir(parents=True)
        try:
            current = self._current_model(pretrained)
            self._write_list()
            # A model keeps the settings that it was trained by.
            if not self.folder.model_file.is_file():
                self.plan = self._plan(device)
            warnings = [*self._check(), *self.plan.all_warnings()]
        except Refusal:
            shutil.rmtree(self.path)
            raise
        workflow = self._workflow(epochs, current is not None and pretrained, device, seed)
        parser = workflow.parser
        workflow.initialize()
        best: BestModelHandler = parser.get_parsed_content("validate#best_model")
        before = self._score_before(current, parser.get_parsed_content("validate#evaluator"), best)
        # Without the bundle's report at the end, for which an annotator would have to wait.
        parser.get_parsed_content("train#trainer").run()
        # Without validation the handler has no score, and has written the last model.
        replaced = before is None or (best.best is not None and best.best > before)
        if replaced:
            parser.get_parsed_content("report#add_probe")()
            self._publish()
        shutil.rmtree(self.path / "models")
        result = TrainingResult(
            run=str(self.path),
            labeled=len(self.training),
            unlabeled=len(self.unlabeled),
            validation=len(self.validation),
            replaced=replaced,
            score=best.best if self.validation else None,
            score_before=before,
            warnings=warnings,
        )
        write_json(self.path / "result.json", asdict(result))
        return result

    def _current_model(self, is_needed: bool) -> Path | None:
        """File of the current model; ``None`` where there is none, or one of other classes that is not needed."""
        if not self.folder.model_file.is_file():
            return None
        try:
            load_model(self.folder.bundle.parser("inference").get_parsed_content("network_def"), self.folder.model_file)
        except ValueError as error:
            if is_needed:
                raise Refusal(
                    "Going on from the current model needs one with the classes and settings of the app, got another. "
                    f"Train anew, with pretrained false. {error}"
                ) from error
            return None
        return self.folder.model_file

    def _write_list(self) -> None:
        content = {
            "labels": {str(value): name for value, name in enumerate(self.folder.class_names)},
            "training": self.training,
            "unlabeled": self.unlabeled,
            "validation": self.validation,
        }
        write_json(self.path / "dataset.json", content)

    def _plan(self, device: str) -> DatasetPlan:
        """Settings that the app does not have and that go by the scans; none where the app wants the phantom's."""
        data = {"dataset_dir": str(self.path), "datalist#allow_outside": True, "check_data": False}
        parser = self.folder.bundle.parser("train", device=device, **data)
        if parser.get("planned_for") is None:
            return DatasetPlan()
        try:
            for name in _PLANNED:
                if name in parser:
                    parser.get_parsed_content(name)
        except RuntimeError:
            # The check, which follows, says what is wrong with the scans.
            return DatasetPlan()
        plan = parser.get_parsed_content("plan").made(parser.get_parsed_content("spacing_mm"))
        if plan.settings:
            print(f"Settings by the labels of this first training, kept in {self.folder.settings_file}:", flush=True)
            print(plan, flush=True)
        return plan

    def _check(self) -> list[str]:
        """What may be wrong with the scans; errors are raised."""
        parser = self.folder.bundle.parser("train", **self.plan.settings)
        findings = check_dataset(
            self.path,
            allow_outside=True,  # the list is ours, and scans stay where the annotator has them
            patch_size=parser.get_parsed_content("patch_size"),
            spacing_mm=parser.get_parsed_content("spacing_mm"),
            intensity_window=scaling_window(parser.get_parsed_content("scale_intensity")),
        )
        if errors := [finding for finding in findings if finding.severity == "error"]:
            raise Refusal(f"Training needs scans and labels without errors, got\n{findings_table(errors)}")
        if findings:
            print(findings_table(findings), flush=True)
        return [_sentence(finding) for finding in findings]

    def _workflow(self, epochs: int | None, pretrained: bool, device: str, seed: int) -> ConfigWorkflow:
        configs = ["train", *(["finetune"] if pretrained else [])]
        overrides: dict[str, Any] = {
            "output_dir": str(self.path),
            "dataset_dir": str(self.path),
            # The settings are those of the app, by which it segments, whatever its scans are like.
            "planned_for": None,
            **self.plan.settings,
            "datalist#allow_outside": True,
            "token_cache#folder": str(self.folder.root / "tokens"),
            "check_data": False,
            "device": device,
            "seed": seed,
        }
        if pretrained:
            overrides["start_file"] = str(self.folder.model_file)
        if epochs is not None:
            overrides["epochs"] = epochs
        return self.folder.bundle.workflow(*configs, **overrides)

    def _score_before(
        self, current: Path | None, evaluator: SupervisedEvaluator, best: BestModelHandler
    ) -> float | None:
        """Key metric of the current model, which the best-model handler then asks every epoch to exceed."""
        if current is None or not self.validation:
            return None
        network = evaluator.network
        evaluator.network = load_model(copy.deepcopy(network), current)
        evaluator.run()
        evaluator.network = network
        # As if it had never run: its epochs are those of the training.
        evaluator.state.epoch = 0
        return best.best

    def _publish(self) -> None:
        if self.plan.settings:
            # Before the model that sees scans so.
            planned = self.plan.overlay("Planned by the labels of the first training.")
            write_json(self.folder.settings_file, {**read_configuration(self.folder.settings_file), **planned})
        probe = probe_path(self.folder.model_file)
        # Before the model that it belongs to goes.
        probe.unlink(missing_ok=True)
        for target in (self.folder.model_file, probe):
            if (new := self.path / "models" / target.name).is_file():
                os.replace(new, target)


def latest_progress(folder: AppFolder) -> dict[str, Any]:
    """
    How far the latest training is: its folder, the last line of its history, and its result once it has one.

    Empty when there was none.
    """
    runs = sorted(folder.runs.iterdir()) if folder.runs.is_dir() else []
    if not runs:
        return {}
    progress: dict[str, Any] = {"run": runs[-1].name}
    history = runs[-1] / "history.csv"
    if history.is_file():
        progress["epochs"] = [
            {name: float(value) for name, value in row.items() if value} for row in read_table(history)
        ]
        scored = [row for row in progress["epochs"] if str(MetricKeys.KEY) in row]
        progress["best_metric"] = max((row[str(MetricKeys.KEY)] for row in scored), default=None)
    result = runs[-1] / "result.json"
    if result.is_file():
        progress["result"] = json.loads(result.read_text(encoding="utf-8"))
    return progress


def _validates(name: str, share: float) -> bool:
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < share


def _sentence(finding: Finding) -> str:
    return f"{finding.file} {finding.problem}. {finding.remedy}"
