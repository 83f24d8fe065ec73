"""Assessing all scans with the current model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.utils.others.generic import name_to_device

from dinomix_monai.label.app_folder import AppFolder
from dinomix_monai.label.assessment import Assessments, ScanAssessor
from dinomix_monai.label.refusal import Refusal
from dinomix_monai.volumes import VolumeError, label_values, open_volume

__all__ = ["DinoMixScoring"]

logger = logging.getLogger(__name__)


class DinoMixScoring(ScoringMethod):
    """
    Assesses every scan, labeled or not, that the current model has not assessed yet.

    It writes after each scan, so the strategy can go by those that are done. A model that a training puts in place
    meanwhile takes over. A scan that cannot be read, or is not finite when preprocessed, is left out and logged.

    Args:
        folder: folder of the app.
    """

    def __init__(self, folder: AppFolder) -> None:
        super().__init__("Agreement of student and EMA teacher on each class, and features of each scan")
        self.folder = folder

    def is_due(self, datastore: Datastore) -> bool:
        """Whether there is a model and a scan that it has not assessed."""
        return self.folder.model_stamp > 0 and bool(_missing(Assessments.read(self.folder), datastore))

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """
        Assesses what is missing.

        Raises:
            Refusal: When there is no model.
        """
        if not self.folder.model_stamp:
            raise Refusal("Assessing scans needs a model, and the app has none yet. Label scans and train one.", 409)
        device = name_to_device(request.get("device"))
        preprocessing = self.folder.bundle.parser("inference", device=device).get_parsed_content("preprocessing")
        counts, stamp, assessed = self._counts(datastore), 0, set[str]()
        while missing := _missing(known := replace(Assessments.read(self.folder), counts=counts), datastore):
            if known.stamp != stamp:
                stamp, assessor = known.stamp, ScanAssessor.of_app(self.folder, device)
            try:
                image = preprocessing({"image": datastore.get_image_uri(missing[0])})["image"].as_tensor()
                if not image.isfinite().all():
                    raise ValueError("It has voxels that are not finite.")
            except Exception as error:  # each reader has its own
                logger.warning("%s cannot be assessed. %s", missing[0], error)
                known.unreadable.append(missing[0])
            else:
                known.scans[missing[0]] = assessor(image)
                assessed.add(missing[0])
                logger.info("Assessed %s", missing[0])
            known.write(self.folder)
        return {"assessed": sorted(assessed)}

    def _counts(self, datastore: Datastore) -> list[int]:
        """Labeled voxels of each class; labels with other values or damage are left to the check before a training."""
        num_classes = len(self.folder.class_names)
        counts = np.zeros(num_classes, dtype=np.int64)
        for case in datastore.datalist():
            try:
                counts += label_values(open_volume(case["label"]), num_classes).voxels
            except VolumeError as error:
                logger.warning("%s does not count as a label. It %s", case["label"], error)
        return counts[1:].tolist()


def _missing(known: Assessments, datastore: Datastore) -> list[str]:
    """Scans that a model has not looked at, in order."""
    return sorted({*datastore.list_images()} - {*known.scans, *known.unreadable})
