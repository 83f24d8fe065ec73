"""The scan to label next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from dinomix_monai.label.app_folder import AppFolder
from dinomix_monai.label.assessment import Assessments
from dinomix_monai.label.next_case import diverse_order, expected_gain

__all__ = ["DinoMixStrategy"]


class DinoMixStrategy(Strategy):
    """
    The unlabeled scan that promises most for the rare classes and is unlike those that are labeled or handed out.

    A scan that was handed out and has no label yet comes again only after all others. Scans that the current model has
    not assessed come after those that it has, in the order of their names.

    Args:
        folder: folder of the app.
        name: name of the strategy in requests, under which MONAI Label notes what was handed out.
    """

    def __init__(self, folder: AppFolder, name: str) -> None:
        super().__init__("Most expected gain for rare classes, and unlike the scans before")
        self.folder, self.name = folder, name

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """
        Chooses.

        Returns:
            ``id`` of the scan, why it, and how many scans were assessed; ``None`` when all scans have labels.
        """
        unlabeled = sorted(datastore.get_unlabeled_images())
        if not unlabeled:
            return None
        handed_out = {name for name in unlabeled if self._was_handed_out(datastore, name)}
        fresh = [name for name in unlabeled if name not in handed_out] or unlabeled
        known = Assessments.read(self.folder)
        candidates = [name for name in fresh if name in known.scans]
        progress = {"assessed_scans": len(known.scans), "scans": len(datastore.list_images())}
        if not candidates:
            reason = "first by name: no scan left that the current model has assessed"
            return {"id": fresh[0], "reason": reason, **progress}
        gains = expected_gain(np.array([known.scans[name].shortfalls for name in candidates]), known.counts)
        before = [name for name in known.scans if name not in candidates and self._is_seen(datastore, name, handed_out)]
        features = np.array([known.scans[name].features for name in candidates])
        seen = np.array([known.scans[name].features for name in before]).reshape(len(before), features.shape[1])
        first = diverse_order(gains, features, seen)[0]
        reason = "most expected gain for rare classes among scans unlike those before"
        return {"id": candidates[first], "reason": reason, "expected_gain": float(gains[first]), **progress}

    def _was_handed_out(self, datastore: Datastore, name: str) -> bool:
        return self.name in datastore.get_image_info(name).get("strategy", {})

    @staticmethod
    def _is_seen(datastore: Datastore, name: str, handed_out: set[str]) -> bool:
        return name in handed_out or name in datastore.get_labeled_images()
