"""The scan to label next."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from dinomix_monai.label.app_folder import AppFolder
from dinomix_monai.selection import Thumbnails, rank_scans

__all__ = ["DinoMixStrategy"]

logger = logging.getLogger(__name__)

# An annotator waits no longer for scans to be looked at; the next request goes on with it.
_LOOKING_S = 60.0


class DinoMixStrategy(Strategy):
    """
    A scan by lot that is unlike those that are labeled or handed out, as the command ``next`` has it.

    It needs no model. A scan that was handed out and has no label yet comes again only after all others. Scans that
    have not been looked at come after those that have, in the order of their names.

    Args:
        folder: folder of the app.
        name: name of the strategy in requests, under which MONAI Label notes what was handed out.
    """

    def __init__(self, folder: AppFolder, name: str) -> None:
        super().__init__("By lot, and unlike the scans before")
        self.folder, self.name = folder, name
        self._thumbnails = Thumbnails(folder.root / "thumbnails")

    def __call__(self, request: Mapping[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """
        Chooses.

        Returns:
            ``id`` of the scan, the ``reason``, and how many of all ``scans`` were ``looked_at``; ``None`` when all
            scans have labels.
        """
        unlabeled = sorted(datastore.get_unlabeled_images())
        if not unlabeled:
            return None
        handed_out = [name for name in unlabeled if self._was_handed_out(datastore, name)]
        fresh = [name for name in unlabeled if name not in handed_out] or unlabeled
        before = [name for name in sorted(datastore.list_images()) if name not in fresh]
        thumbnails = self._looked_at(datastore, [*before, *fresh])
        progress = {"looked_at": len(thumbnails), "scans": len(datastore.list_images())}
        seen = [name for name in before if name in thumbnails]
        if len(thumbnails) == len(seen):
            return {"id": fresh[0], "reason": "first by name: no scan left that has been looked at", **progress}
        [chosen] = rank_scans(thumbnails, seen, self.folder.root, count=1)
        return {"id": chosen.name, "reason": chosen.reason, **progress}

    def _was_handed_out(self, datastore: Datastore, name: str) -> bool:
        return self.name in datastore.get_image_info(name).get("strategy", {})

    def _looked_at(self, datastore: Datastore, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Thumbnails, as far as there are some or there is time; a scan that cannot be read has none."""
        found, end = {}, time.monotonic() + _LOOKING_S
        for name in names:
            image = datastore.get_image_uri(name)
            try:
                if time.monotonic() < end or self._thumbnails.file(image).is_file():
                    found[name] = self._thumbnails(image)
            except Exception as error:  # each reader has its own
                logger.warning("%s cannot be looked at. %s", name, error)
        return found
