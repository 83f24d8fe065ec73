"""The scan to label next."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from dinomix_monai.label.app_folder import AppFolder
from dinomix_monai.selection import ScanLooker, rank_scans, scan_looker

__all__ = ["DinoMixStrategy"]

logger = logging.getLogger(__name__)

# An annotator waits no longer for the teacher to look at scans; it goes on at the next request.
_LOOKING_S = 60.0


class DinoMixStrategy(Strategy):
    """
    The most typical scan of a kind of which none is labeled or handed out, as the command ``next`` has it.

    It needs no model. A scan that was handed out and has no label yet comes again only after all others. Scans that the
    app's teacher has not looked at come after those that it has, in the order of their names.

    Args:
        folder: folder of the app.
        name: name of the strategy in requests, under which MONAI Label notes what was handed out.
    """

    def __init__(self, folder: AppFolder, name: str) -> None:
        super().__init__("The most typical scan of a kind without labels, by what it looks like")
        self.folder, self.name = folder, name
        self._looker: ScanLooker | None = None

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
        looks = self._looks(datastore, [*before, *fresh])
        progress = {"looked_at": len(looks), "scans": len(datastore.list_images())}
        labeled = [name for name in before if name in looks]
        if len(looks) == len(labeled):
            return {"id": fresh[0], "reason": "first by name: no scan left that the teacher has looked at", **progress}
        [chosen] = rank_scans(looks, labeled, self.folder.root, count=1)
        return {"id": chosen.name, "reason": chosen.reason, **progress}

    def _was_handed_out(self, datastore: Datastore, name: str) -> bool:
        return self.name in datastore.get_image_info(name).get("strategy", {})

    def _looks(self, datastore: Datastore, names: Sequence[str]) -> dict[str, torch.Tensor]:
        """Those at scans, as far as there are some or there is time; a scan that cannot be read has none."""
        if self._looker is None:
            settings = {"output_dir": str(self.folder.root), "planned_for": None}
            self._looker = scan_looker(self.folder.bundle.parser("train", **settings))
        looks, end = {}, time.monotonic() + _LOOKING_S
        for name in names:
            image = datastore.get_image_uri(name)
            try:
                if time.monotonic() < end or self._looker.file(image).is_file():
                    looks[name] = self._looker(image)
            except Exception as error:  # each reader has its own
                logger.warning("%s cannot be looked at. %s", name, error)
        return looks
