"""Training at an annotator's request."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.utils.others.generic import device_list, name_to_device, strtobool

from dinomix_monai.label.app_folder import AppFolder
from dinomix_monai.label.checked_labels import labeled_scans
from dinomix_monai.label.refusal import Refusal
from dinomix_monai.label.training_run import TrainingRun, latest_progress

__all__ = ["DinoMixTrainTask"]

logger = logging.getLogger(__name__)

# What MONAI Label and its clients put into a request.
_OF_THE_SERVER = {"model", "bundle_path", "client_id", "gpus", "local_rank", "dinomix"}


class DinoMixTrainTask(TrainTask):
    """
    The bundle's ``train.json`` behind MONAI Label's ``/train``.

    It learns from the labels with the tag ``final`` and from every scan that has none. Requests may have
    ``max_epochs``, ``pretrained`` (go on from the current model, or anew), ``val_split``, ``device`` and ``seed``.

    Args:
        folder: folder of the app.
    """

    def __init__(self, folder: AppFolder) -> None:
        super().__init__(folder.metadata["description"])
        self.folder = folder
        self._epochs = folder.bundle.parser("train").get_parsed_content("epochs")

    def config(self) -> dict[str, Any]:
        """What a request may set, and the defaults."""
        return {"device": device_list(), "pretrained": True, "max_epochs": self._epochs, "val_split": 0.0, "seed": 0}

    def stats(self) -> dict[str, Any]:
        """How far the latest training is, from its files: another process may be at it."""
        return latest_progress(self.folder)

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """
        Trains.

        Args:
            request: MONAI Label's.
            datastore: scans and labels.

        Returns:
            The fields of :class:`TrainingResult`; what the request sets and :meth:`config` does not have is among its
            warnings, because clients add entries of their own.

        Raises:
            Refusal: As :class:`TrainingRun` does, or when a value of the request is of the wrong kind.
        """
        wanted = {**self.config(), **request}
        try:
            epochs, seed, share = int(wanted["max_epochs"]), int(wanted["seed"]), float(wanted["val_split"])
            pretrained, device = strtobool(wanted["pretrained"]), name_to_device(wanted["device"])
        except (AttributeError, TypeError, ValueError) as error:
            raise Refusal(
                "max_epochs, seed and val_split must be numbers, pretrained true or false, and device a name. "
                f"{str(error).rstrip('.')}."
            ) from error
        labeled = labeled_scans(datastore)
        unlabeled = sorted(datastore.get_image_uri(name) for name in datastore.get_unlabeled_images())
        logger.info("Training on %d labeled and %d unlabeled scans", len(labeled), len(unlabeled))
        run = TrainingRun(self.folder, labeled, unlabeled, share)
        result = run(epochs, pretrained, device, seed)
        logger.info("%s", _in_words(asdict(result)))
        if unknown := sorted(set(request) - set(self.config()) - _OF_THE_SERVER):
            warning = f"Training can be given {', '.join(self.config())}, and has left out {', '.join(unknown)}."
            logger.warning(warning)
            result.warnings.append(warning)
        return asdict(result)


def _in_words(result: Mapping[str, Any]) -> str:
    text = "The new model is in use." if result["replaced"] else "The model that was there is better and stays."
    if result["score"] is not None:
        before = "none" if result["score_before"] is None else f"{result['score_before']:.3f}"
        text += f" Mean Dice on {result['validation']} validation scans: {result['score']:.3f}, before {before}."
    return text
