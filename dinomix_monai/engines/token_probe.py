"""The frozen teacher as a second reader: a linear probe of its tokens that is asked beside the student."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils.enums import CommonKeys as Keys
from torch import nn
from torch.nn import functional as F

from dinomix_monai.core.precision import computing_in, without_float16
from dinomix_monai.core.tensor_file import read_tensor_file, write_tensor_file
from dinomix_monai.metrics.class_dice import class_dice
from dinomix_monai.metrics.nan_means import nan_mean
from dinomix_monai.models import load_model, probe_path
from dinomix_monai.networks import LinearProbe
from dinomix_monai.teacher import FoundationTeacher, MissingWeightsError, SliceTokens

__all__ = ["ScanTokens", "TokenProbe", "add_probe", "open_probe", "probe_cell"]

logger = logging.getLogger(__name__)

_LEAST_LOGIT = -1e4
_SEED = 0
# Side of what a token stands for, as it served best on CTs at 4.5 and at 3 mm.
_TOKEN_MM = 12.5
# Of volumes that keep their own voxel sizes.
_CELL = [3, 3, 2]
_WHAT = "the linear probe of a trained model"


@dataclass(frozen=True)
class ScanTokens:
    """
    Tokens and label of a scan, all that a probe is fitted to.

    Args:
        tokens: shape (E, h, w, d).
        label: class of each voxel, shape (H, W, D).
    """

    tokens: torch.Tensor
    label: torch.Tensor


def probe_cell(spacing_mm: Sequence[float]) -> list[int]:
    """
    Voxels that a token of a probe best stands for along each axis, some 12.5 mm.

    Args:
        spacing_mm: voxel size; one that is not above 0 is that of each volume, about which nothing is known.

    Example:
        >>> probe_cell([3.0, 3.0, 4.0])
        [4, 4, 3]
    """
    sizes = zip(spacing_mm, _CELL)
    return [max(1, round(_TOKEN_MM / size)) if size > 0 else unknown for size, unknown in sizes]


class TokenProbe:
    r"""
    Class logits of the voxels of a scan by a linear classifier of a frozen teacher's tokens.

    A foundation model has seen what no student learns from a handful of labeled scans. A linear classifier fitted to
    these scans reads it off in seconds. The student knows edges and the teacher knows what it looks at, and their
    mistakes are not the same. Both are asked as a product of experts, in which the probe has an exponent, its
    ``weight``:

    .. math:: p(c) \propto p_\mathrm{student}(c) \; p_\mathrm{probe}(c)^w

    which is the sum of the logits, the probe's multiplied by ``weight``.

    Reference: Hinton, "Training Products of Experts by Minimizing Contrastive Divergence", Neural Computation 14, 2002.

    Args:
        slice_tokens: the teacher.
        cell: voxels of a token along each axis, nearly: there is a whole number of cells along each side of a scan.
        num_classes: number C of classes, background included.
        dtype: what the teacher computes in under ``torch.autocast``, ``None`` for the precision of its weights;
            ``float16``, whose range a large teacher may leave, counts as ``None``.
        max_points: largest number of voxels that it is fitted to, half of them background; every scan has the same
            share, and within it every class.

    Attributes:
        linear: the classifier, ``None`` before :meth:`fit`.
        weight: exponent of its probabilities, 0 until it is chosen.

    Raises:
        ValueError: When ``cell`` is not three numbers of voxels >= 1.
    """

    def __init__(
        self,
        slice_tokens: SliceTokens,
        cell: Sequence[int],
        num_classes: int,
        dtype: torch.dtype | None = None,
        max_points: int = 120_000,
    ) -> None:
        if len(cell) != 3 or min(cell) < 1:
            raise ValueError(f"cell must be three numbers of voxels >= 1, got {tuple(cell)}.")
        self.slice_tokens, self.cell, self.num_classes = slice_tokens, tuple(cell), num_classes
        self.dtype = without_float16(dtype)
        self.max_points = max_points
        self.linear: LinearProbe | None = None
        self.weight = 0.0

    @torch.no_grad()
    def tokens(self, volume: torch.Tensor) -> torch.Tensor:
        """
        The teacher's tokens of a scan.

        Args:
            volume: shape (C, H, W, D) in RAS order, values in [0, 1].

        Returns:
            Shape (E, h, w, d), on the device of the volume.
        """
        voxels = volume.as_subclass(torch.Tensor).float()
        grid = [max(1, round(side / cell)) for side, cell in zip(voxels.shape[1:], self.cell)]
        # The token cache leaves it on the CPU.
        self.slice_tokens.to(voxels.device)
        with computing_in(self.dtype, voxels.device):
            return self.slice_tokens(voxels[None], grid)[0].float()

    def scan_tokens(self, scan: Mapping[str, Any]) -> ScanTokens:
        """What a labeled scan, ``image`` (C, H, W, D) and ``label`` (1, H, W, D), gives to be fitted to."""
        return ScanTokens(self.tokens(scan[Keys.IMAGE]), scan[Keys.LABEL].as_subclass(torch.Tensor)[0].long())

    def fit_to(self, scans: Sequence[Mapping[str, Any]]) -> TokenProbe:
        """As :meth:`fit`, of preprocessed labeled scans, which the teacher looks at one after another."""
        return self.fit([self.scan_tokens(scans[place]) for place in range(len(scans))])

    def fit(self, scans: Sequence[ScanTokens]) -> TokenProbe:
        """
        Fits the classifier to labeled scans; the same scans give the same classifier.

        Raises:
            ValueError: When there is no scan.
        """
        if not scans:
            raise ValueError("scans must be one at least, got none. Label a scan.")
        features, labels, voxels = (list(part) for part in zip(*(self._draw(scan, len(scans)) for scan in scans)))
        self.linear = LinearProbe.fit(
            torch.cat(features), torch.cat(labels), self.num_classes, torch.stack(voxels).sum(0)
        )
        return self

    def _draw(self, scan: ScanTokens, num_scans: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Features (N, E) and labels (N,) of some voxels of a scan, and the number of its voxels by class."""
        labels = scan.label.flatten()
        most = max(self.num_classes, self.max_points // (2 * num_scans))
        # Of its own, so that no other number depends on whether there is a probe.
        generator = torch.Generator().manual_seed(_SEED)
        chosen = []
        for value in range(self.num_classes):
            places = (labels == value).nonzero()[:, 0].cpu()
            wanted = most if value == 0 else most // (self.num_classes - 1)
            chosen.append(places[torch.randperm(len(places), generator=generator)[:wanted]])
        index = torch.cat(chosen).to(labels.device)
        sides = torch.tensor(scan.label.shape, device=labels.device)
        voxels = torch.stack(torch.unravel_index(index, scan.label.shape), dim=-1)
        # In [-1, 1] from face to face of the scan, as grid_sample has it, which begins with the last axis.
        places = ((2 * voxels + 1) / sides - 1).flip(-1)[None, :, None, None]
        features = F.grid_sample(scan.tokens[None], places.to(scan.tokens), padding_mode="border", align_corners=False)[
            0, :, :, 0, 0
        ]
        voxels_by_class = torch.bincount(labels, minlength=self.num_classes)[: self.num_classes]
        return features.T, labels[index], voxels_by_class

    @torch.no_grad()
    def logits(self, tokens: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
        """
        Logits of the voxels of a scan, interpolated linearly between the centers of the cells.

        Args:
            tokens: what :meth:`tokens` gave.
            size: voxels (H, W, D) of the scan.

        Returns:
            Shape (C, H, W, D). A class that no labeled scan shows has no chance.

        Raises:
            ValueError: When the probe is not fitted.
        """
        if self.linear is None:
            raise ValueError("The probe must be fitted before it is asked, got one that is not. Call fit.")
        # Minus infinity, which a class has that the probe has not seen, does not interpolate.
        values = self.linear(tokens.movedim(0, -1)).clamp_min(_LEAST_LOGIT)
        return F.interpolate(values.movedim(-1, 0)[None], tuple(size), mode="trilinear", align_corners=False)[0]

    def __call__(self, volumes: torch.Tensor) -> torch.Tensor:
        """
        What is added to the logits of a network.

        Args:
            volumes: shape (B, C, H, W, D) in RAS order, values in [0, 1].

        Returns:
            Logits times ``weight``, shape (B, C, H, W, D).
        """
        return self.weight * torch.stack([self.logits(self.tokens(volume), volume.shape[1:]) for volume in volumes])

    def choose_weight(
        self,
        network: Callable,
        inferer: Callable,
        scans: Sequence[Mapping[str, Any]],
        candidates: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5),
    ) -> dict[float, float]:
        """
        Sets the weight with which network and probe together segment scans best.

        Args:
            network: the student, in evaluation mode.
            inferer: called with images and the network.
            scans: labeled scans that neither has learned from, ``image`` (C, H, W, D) and ``label`` (1, H, W, D).
            candidates: weights to try; of equals the first one is taken.

        Returns:
            Mean Dice of the classes by weight; NaN where no scan shows any.
        """
        dice: dict[float, list[np.ndarray]] = {weight: [] for weight in candidates}
        for scan in scans:
            image = scan[Keys.IMAGE].as_subclass(torch.Tensor)
            label = scan[Keys.LABEL].as_subclass(torch.Tensor)[0]
            with torch.no_grad():
                own = torch.as_tensor(inferer(image[None], network))[0].float()
            probed = self.logits(self.tokens(image), image.shape[1:])
            for weight, of_cases in dice.items():
                of_cases.append(class_dice((own + weight * probed).argmax(0), label, self.num_classes))
        # Over the classes of each case first, as validation has it.
        found = {weight: float(nan_mean(nan_mean(np.stack(rows), axis=1), axis=0)) for weight, rows in dice.items()}
        self.weight = max(found, key=lambda weight: found[weight])
        return found

    def describe(self) -> str:
        """One line for logs and reports."""
        if not self.weight:
            return "not asked beside the model, which is better alone"
        return f"a linear probe of it is asked beside the model with weight {self.weight:g}"

    def state_dict(self) -> dict[str, Any]:
        """All that :func:`open_probe` needs beside the teacher's weights."""
        teacher: Any = self.slice_tokens.teacher
        assert self.linear is not None
        return {
            "linear": {name: value.cpu() for name, value in self.linear.state_dict().items()},
            "weight": self.weight,
            "cell": list(self.cell),
            "offsets": list(self.slice_tokens.offsets),
            "tokens_per_cell": self.slice_tokens.tokens_per_cell,
            "model_name": teacher.model_name,
            "layer": teacher.layer,
            "image_mean": teacher.mean.flatten().tolist(),
            "image_std": teacher.std.flatten().tolist(),
            "fingerprint": self.slice_tokens.fingerprint,
        }


def add_probe(
    probe: TokenProbe | None,
    model_file: str | Path,
    network: nn.Module,
    inferer: Callable,
    labeled: Sequence[Mapping[str, Any]],
    validation: Sequence[Mapping[str, Any]],
) -> None:
    """
    Fits a probe to the labeled scans, chooses its weight on the validation cases, and writes it beside the model.

    Where the student is better alone, as with a teacher that does not see these organs, no file is written, and nobody
    needs the teacher from then on. Without validation cases nothing speaks for the probe, and there is none.

    Args:
        probe: the probe; with ``None`` nothing is done.
        model_file: the trained model.
        network: its network, whose weights are replaced by those of the file.
        inferer: called with images and the network, gives the network's own logits.
        labeled: preprocessed labeled scans.
        validation: preprocessed validation cases.
    """
    if probe is None or not len(labeled):
        return
    if not len(validation):
        logger.warning(
            "The teacher is not asked beside the student, because there are no validation cases to weigh it on. List "
            "some under `validation` in dataset.json."
        )
        return
    probe.fit_to(labeled)
    load_model(network, model_file).eval()
    scores = probe.choose_weight(network, inferer, [validation[place] for place in range(len(validation))])
    table = ", ".join(f"{weight:g}: {score:.3f}" for weight, score in scores.items())
    logger.info("Mean Dice on the validation cases by the weight of the teacher's probe: %s.", table)
    logger.info("The teacher: %s.", probe.describe())
    if probe.weight:
        write_tensor_file(probe.state_dict(), probe_path(model_file))


def open_probe(
    model_file: str | Path,
    teacher_weights: str | Path = "auto",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
) -> TokenProbe | None:
    """
    The probe of a trained model, with its teacher.

    Args:
        model_file: the model, beside which the probe lies.
        teacher_weights: as ``weights`` of :class:`~dinomix_monai.teacher.FoundationTeacher`, but for ``"none"``, which
            stands for the student alone.
        device: where the teacher is.
        dtype: see :class:`TokenProbe`.

    Returns:
        ``None`` where the model has no probe, or the student is wanted alone.

    Raises:
        ValueError: When the file is damaged or something else, or the weights are those of another teacher.
        FileNotFoundError: When ``teacher_weights`` is a path without a file.
        RuntimeError: When ``"auto"`` finds no weights.
    """
    path = probe_path(model_file)
    if not path.is_file() or str(teacher_weights) == "none":
        return None
    content = read_tensor_file(path, "model_file", _WHAT)
    alone = "Or pass teacher_weights=none for the student alone, which is less accurate."
    try:
        linear = content["linear"]
        num_classes, num_features = linear["linear.weight"].shape
        model = {name: content[name] for name in ("model_name", "layer", "image_mean", "image_std")}
        channels: Any = "neighbors" if any(content["offsets"]) else "repeat"
        cell, weight, expected = content["cell"], float(content["weight"]), content["fingerprint"]
        classifier = LinearProbe(num_features, num_classes)
        classifier.load_state_dict(linear)
        tokens_per_cell = int(content["tokens_per_cell"])
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"model_file must have {_WHAT} beside it, got {path} with something else ({type(error).__name__}). Take it "
            f"from the training again. {alone}"
        ) from error
    try:
        teacher = FoundationTeacher(weights=teacher_weights, **model)
    except MissingWeightsError as error:
        raise RuntimeError(
            f"The model was trained to be asked with its teacher, see {path}, but {error.found}. Pass "
            f"teacher_weights=FILE, the weights that it was trained with. {alone}"
        ) from error
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"The model was trained to be asked with its teacher, see {path}. {error} {alone}"
        ) from error
    if teacher.fingerprint != expected:
        raise ValueError(
            f"teacher_weights must be those of the training, fingerprint {expected[:12]}, got {teacher.describe()}. "
            f"Pass the same file. {alone}"
        )
    slice_tokens = SliceTokens(teacher.to(device), channels=channels, tokens_per_cell=tokens_per_cell)
    probe = TokenProbe(slice_tokens, cell, num_classes, dtype)
    probe.linear, probe.weight = classifier.to(device), weight
    return probe
