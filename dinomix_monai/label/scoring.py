"""Assessing all scans with the current model."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import nibabel as nib
import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.utils.others.generic import name_to_device

from dinomix_monai.label.app_folder import AppFolder
from dinomix_monai.label.assessment import Assessments, ScanAssessor
from dinomix_monai.label.refusal import Refusal

__all__ = ["DinoMixScoring"]

logger = logging.getLogger(__name__)


class DinoMixScoring(ScoringMethod):
    """
    Assesses every scan, labeled or not, that the current model has not assessed yet.

    It writes after each scan, so the strategy can go by those that are done.

    Args:
        folder: folder of the app.
    """

    def __init__(self, folder: AppFolder) -> None:
        super().__init__("Agreement of student and EMA teacher on each class, and features of each scan")
        self.folder = folder

    def is_due(self, datastore: Datastore) -> bool:
        """Whether there is a model and a scan that it has not assessed."""
        done = Assessments.read(self.folder).scans
        return self.folder.model_stamp > 0 and any(name not in done for name in datastore.list_images())

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any]:
        """
        Assesses what is missing.

        Raises:
            Refusal: When there is no model.
        """
        if not self.folder.model_stamp:
            raise Refusal("Assessing scans needs a model, and the app has none yet. Label scans and train one.", 409)
        known = replace(Assessments.read(self.folder), counts=self._counts(datastore))
        names = sorted(name for name in datastore.list_images() if name not in known.scans)
        device = name_to_device(request.get("device"))
        assessor = ScanAssessor.of_app(self.folder, device)
        preprocessing = self.folder.parser("inference", device=device).get_parsed_content("preprocessing")
        for name in names:
            image = preprocessing({"image": datastore.get_image_uri(name)})["image"]
            known.scans[name] = assessor(image.as_tensor())
            known.write(self.folder)
            logger.info("Assessed %s", name)
        return {"assessed": names}

    def _counts(self, datastore: Datastore) -> list[int]:
        """Labeled voxels of each class; values that are none are left to the check before a training."""
        classes = range(1, len(self.folder.class_names))
        counts = np.zeros(len(classes), dtype=np.int64)
        for case in datastore.datalist():
            label = np.asanyarray(nib.load(case["label"]).dataobj)  # type: ignore[attr-defined]  # of every format
            counts += [np.count_nonzero(label == value) for value in classes]
        return counts.tolist()
