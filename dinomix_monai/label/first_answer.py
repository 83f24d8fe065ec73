"""Segmentation before there is a model: what a frozen teacher makes of the first labels."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.inferers import Inferer, SimpleInferer
from torch import nn

from dinomix_monai.core.files import write_json
from dinomix_monai.engines import ProbedInferer, TokenProbe
from dinomix_monai.label.app_folder import AppFolder
from dinomix_monai.label.refusal import Refusal

__all__ = ["FirstAnswer", "Undecided"]

logger = logging.getLogger(__name__)


class Undecided(nn.Module):
    """
    A network that gives every class the same chance.

    Args:
        num_classes: number of classes, background included.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of 0, shape (B, C, H, W, D), of images (B, 1, H, W, D)."""
        return x.new_zeros(len(x), self.num_classes, *x.shape[2:])


class FirstAnswer:
    """
    The linear probe of the app's frozen teacher, fitted to the labeled scans that there are.

    It is fitted when it is first asked and again when labels have changed, which takes the teacher some seconds for
    each labeled scan.

    Args:
        folder: folder of the app.
        labeled: gives the labeled scans, as :class:`TrainingRun` takes them.
    """

    def __init__(self, folder: AppFolder, labeled: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        self.folder, self.labeled = folder, labeled
        self._fitted: dict[str, tuple[TokenProbe | None, list[tuple]]] = {}

    def probe(self, device: str) -> TokenProbe | None:
        """
        The probe of the labels that there are now.

        Args:
            device: where the teacher is.

        Returns:
            ``None`` where there is no label yet, or no pre-trained teacher.

        Raises:
            Refusal: When the teacher's weights are not found, or a label cannot be learned from.
        """
        cases = list(self.labeled())
        stamps = [(case, *(Path(case[key]).stat().st_mtime_ns for key in ("image", "label"))) for case in cases]
        if device not in self._fitted or self._fitted[device][1] != stamps:
            try:
                self._fitted[device] = self._fit(cases, device), stamps
            except (RuntimeError, ValueError) as error:  # as MONAI wraps what its transforms raise
                cause = error.__cause__ or error
                raise Refusal(f"There is no model, and the teacher cannot answer. {cause}", 409) from error
        return self._fitted[device][0]

    def inferer(self, device: str) -> Inferer:
        """
        Segments by the probe alone, with a network that is :class:`Undecided`.

        Args:
            device: where the teacher is.

        Raises:
            Refusal: When there is no label yet, or no pre-trained teacher, and as :meth:`probe` does.
        """
        probe = self.probe(device)
        if probe is None:
            raise Refusal(
                "Segmentation needs a model, and the app has none yet. Label scans and train one. With a pre-trained "
                "teacher (--teacher_weights) one labeled scan gives a first answer.",
                409,
            )
        return ProbedInferer(SimpleInferer(), probe)

    def _fit(self, cases: Sequence[Mapping[str, Any]], device: str) -> TokenProbe | None:
        if not cases:
            return None
        place = self.folder.root / "tmp" / "first_answer"
        labels = {str(value): name for value, name in enumerate(self.folder.class_names)}
        write_json(place / "dataset.json", {"labels": labels, "training": cases})
        settings = {
            "datalist#allow_outside": True,
            "dataset_dir": str(place),
            "output_dir": str(place),
            "planned_for": None,
        }
        parser = self.folder.bundle.parser("train", device=device, **settings)
        probe: TokenProbe | None = parser.get_parsed_content("report#probe")
        if probe is None:
            return None
        scans = parser.get_parsed_content("report#add_probe#labeled")
        logger.info("There is no model: the teacher's probe is fitted to %d labeled scans.", len(scans))
        probe.fit_to(scans).weight = 1.0
        return probe
