"""What a model is sure of in a scan, and what the scan looks like to it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from dinomix_monai.core.files import write_json
from dinomix_monai.label.app_folder import AppFolder
from dinomix_monai.label.next_case import dice_shortfall, mean_entropy
from dinomix_monai.models import load_model

__all__ = ["Assessment", "Assessments", "ScanAssessor"]


@dataclass(frozen=True)
class Assessment:
    """
    Of one scan.

    Args:
        shortfalls: see :func:`dice_shortfall`, of the classes without background.
        entropy: see :func:`mean_entropy`, of the EMA teacher.
        features: mean over the scan of each channel of the student's features.
    """

    shortfalls: list[float]
    entropy: float
    features: list[float]


class ScanAssessor:
    """
    Compares the student and the EMA teacher of a training on preprocessed scans.

    Args:
        student: the network as it was trained.
        teacher: its moving average.
        inferer: as ``SlidingWindowInferer``, called with images and a network.
        module: name of the student's module whose output are its features.

    Raises:
        ValueError: When the student has no such module.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, inferer: Callable, module: str) -> None:
        modules = dict(student.named_modules())
        if module not in modules:
            raise ValueError(f"module must name one of the student's, got {module!r}.")
        self.student, self.teacher, self.inferer = student.eval(), teacher.eval(), inferer
        self.tapped = modules[module]

    @classmethod
    def of_app(cls, folder: AppFolder, device: str = "cpu") -> ScanAssessor:
        """
        Assesses with the app's current model.

        Where the student of the model is not known, the model takes its place, and only its doubt counts.

        Raises:
            FileNotFoundError: When the app has no model.
            ValueError: When the model does not fit the app.
        """
        files = [folder.student_file if folder.student_file.is_file() else folder.model_file, folder.model_file]
        student, teacher = (
            load_model(folder.bundle.parser("inference", device=device).get_parsed_content("network"), file)
            for file in files
        )
        # Without the frozen teacher, which says the same beside both.
        inferer = folder.bundle.parser("inference").get_parsed_content("inferer#inferer")
        module = folder.bundle.parser("train").get_parsed_content("distiller#modules")[0]
        return cls(student, teacher, inferer, module)

    @torch.no_grad()
    def __call__(self, image: torch.Tensor) -> Assessment:
        """
        Assesses a scan.

        Args:
            image: preprocessed, shape (1, H, W[, D]), on the device of the networks.
        """
        means: list[torch.Tensor] = []
        handle = self.tapped.register_forward_hook(
            lambda _, __, output: means.append(output.float().flatten(2).mean(dim=2))
        )
        try:
            student = self._probabilities(image, self.student)
        finally:
            handle.remove()
        teacher = self._probabilities(image, self.teacher)
        return Assessment(
            dice_shortfall(student, teacher)[1:].tolist(), mean_entropy(teacher), torch.cat(means).mean(dim=0).tolist()
        )

    def _probabilities(self, image: torch.Tensor, network: nn.Module) -> torch.Tensor:
        return torch.as_tensor(self.inferer(image[None], network))[0].float().softmax(dim=0)


@dataclass(frozen=True)
class Assessments:
    """
    Of all scans, by one model.

    Args:
        stamp: ``model_stamp`` of the app when the model was read.
        counts: labeled voxels of each class without background.
        scans: assessments by name of the scan.
        unreadable: names of those that could not be assessed.
    """

    stamp: int
    counts: list[int]
    scans: dict[str, Assessment]
    unreadable: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: AppFolder) -> Assessments:
        """Those by the app's current model, with no scan where there are none."""
        stamp, classes = folder.model_stamp, len(folder.class_names) - 1
        if folder.scores_file.is_file():
            content = json.loads(folder.scores_file.read_text(encoding="utf-8"))
            if content["stamp"] == stamp and len(content["counts"]) == classes:
                scans = {name: Assessment(**entry) for name, entry in content["scans"].items()}
                return cls(stamp, content["counts"], scans, content.get("unreadable", []))
        return cls(stamp, [0] * classes, {})

    def write(self, folder: AppFolder) -> None:
        """Replaces the file of the app in one move."""
        write_json(folder.scores_file, asdict(self))
