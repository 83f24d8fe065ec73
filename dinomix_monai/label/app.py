"""The app that MONAI Label serves."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random

from dinomix_monai.label.answer import answered
from dinomix_monai.label.app_folder import AppFolder
from dinomix_monai.label.checked_labels import labeled_scans, plain_name
from dinomix_monai.label.dicom_store import DicomStore
from dinomix_monai.label.first_answer import FirstAnswer
from dinomix_monai.label.infer_task import DinoMixInferTask
from dinomix_monai.label.refusal import Refusal
from dinomix_monai.label.scan_store import ScanStore
from dinomix_monai.label.server import is_address
from dinomix_monai.label.strategy import DinoMixStrategy
from dinomix_monai.label.train_task import DinoMixTrainTask
from dinomix_monai.run import report_failures

__all__ = ["NAME", "DinoMixApp"]

logger = logging.getLogger(__name__)

NAME = "dinomix"
"""Name of the model, of its training and of the strategy in all requests."""


class DinoMixApp(MONAILabelApp):
    """
    Segments scans, learns from the labels and from the scans without, and says which scan to label next.

    Args:
        app_dir: a folder as :func:`prepare_app_folder` makes it.
        studies: folder of the scans.
        conf: options of MONAI Label's command; none is used here.

    Raises:
        HTTPException: From requests that are refused, with the reason.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.folder = AppFolder(Path(app_dir).absolute())
        about = {name: self.folder.metadata[name] for name in ("name", "description", "version")}
        super().__init__(app_dir, studies, conf, **about, labels=self.folder.class_names[1:])

    def init_datastore(self) -> Datastore:
        """The scans and their labels."""
        if is_address(self.studies):
            return super().init_datastore()
        return ScanStore(
            self.studies,
            settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            self.folder.class_names,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def _init_dicomweb_datastore(self) -> Datastore:
        return DicomStore(self.studies, self.folder.class_names)

    def init_infers(self) -> dict[str, InferTask]:
        """Inference."""
        return {NAME: DinoMixInferTask(self.folder, FirstAnswer(self.folder, lambda: labeled_scans(self.datastore())))}

    def init_trainers(self) -> dict[str, TrainTask]:
        """Training."""
        return {NAME: DinoMixTrainTask(self.folder)}

    def init_strategies(self) -> dict[str, Strategy]:
        """The next case: ours, and two to compare it with."""
        return {NAME: DinoMixStrategy(self.folder, NAME), "random": Random(), "first": First()}

    def bundle_path(self, model: str | None) -> None:
        """No folder, for the app is the bundle. Asked before a process of a task begins, it refuses unknown models."""
        if model is not None:
            answered(_check_known, "model", model, self._infers)

    def scoring(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Refuses: there is nothing that this app scores."""
        return answered(_refuse_scoring)

    def infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Segments a scan of the studies, one that was uploaded with the request, or one of a session."""
        return self._answer("model", self._infers, self._infer, request, datastore)

    def batch_infer(self, request: Mapping[str, Any], datastore: Datastore | None = None) -> dict[str, Any]:
        """Segments many scans of the studies; on several GPUs only where there are any."""
        several = request.get("multi_gpu", True) and torch.cuda.is_available()
        request = {**request, "multi_gpu": several}
        return self._answer("model", self._infers, super().batch_infer, request, datastore)

    def train(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Trains."""
        return self._answer("model", self._trainers, super().train, request)

    def next_sample(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Chooses the next case."""
        return self._answer("strategy", self._strategies, super().next_sample, request)

    def _answer(
        self, key: str, known: Mapping[str, Any], task: Callable[..., Any], request: Mapping[str, Any], *others: Any
    ) -> dict[str, Any]:
        def answer() -> dict[str, Any]:
            _check_known(key, request.get(key), known)
            return task(request, *others)

        if self._server_mode:
            return answered(answer)
        # In the process of a task. The server shows what such a process prints last, and that is to be a sentence.
        report_failures()
        return answer()

    def _infer(self, request: Mapping[str, Any], datastore: Datastore | None) -> dict[str, Any]:
        image = request.get("image")
        if not isinstance(image, str):
            raise Refusal(f"image must be the name of a scan, got a {type(image).__name__}.")
        if os.path.exists(image):
            self._check_place(Path(image))
        elif not (datastore or self.datastore()).get_image_uri(image):
            raise Refusal(f"image must be the name of a scan of the studies, got {image!r}, which is none.", 404)
        if request.get("label_tag") is not None:
            plain_name("label_tag", request["label_tag"])
        return super().infer(request, datastore)

    def _check_place(self, image: Path) -> None:
        """Refuses files elsewhere on the machine, which a request may name by their path."""
        places = [Path(self.studies), self.folder.root / "tmp"]
        if self._sessions is not None:
            places.append(Path(self._sessions.store_path))
        if not any(image.resolve().is_relative_to(place.resolve()) for place in places):
            raise Refusal("image must be a scan of the studies, or uploaded, got a path elsewhere.", 403)


def _refuse_scoring() -> dict[str, Any]:
    raise Refusal("method must be a scoring of the app, which has none. The bundle's `evaluating` scores a model.", 404)


def _check_known(key: str, name: Any, known: Mapping[str, Any]) -> None:
    if name not in known:
        raise Refusal(f"{key} must be one of {', '.join(known)}, got {name!r}.", 404)
