"""The command ``probe``: whether a teacher sees the organs of a data set, and where it sees them best."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose, Invertd
from monai.utils import convert_to_dst_type
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from dinomix_monai.core.text import number, text_table
from dinomix_monai.losses import FeatureDistillationLoss
from dinomix_monai.metrics.nan_means import nan_mean
from dinomix_monai.probe.organ_probe import LabeledPoints, OrganProbe, ProbeTable, cross_validated_dice, gather_points
from dinomix_monai.probe.picture import draw_probe
from dinomix_monai.probe.point_features import PointFeatures
from dinomix_monai.teacher import FoundationTeacher, SliceTokens
from dinomix_monai.transforms import SaveLabeld

__all__ = ["DatasetProbe", "TeacherView", "probe_dataset"]

logger = logging.getLogger(__name__)

_TEACHER, _UNTRAINED, _INTENSITIES = "teacher", "untrained teacher", "intensities"


@dataclass(frozen=True, order=True)
class TeacherView:
    """
    How a teacher looks at slices.

    Args:
        layer: block whose output gives the tokens.
        token_mm: side of the square that a token stands for.
    """

    layer: int
    token_mm: float


@dataclass(frozen=True)
class DatasetProbe:
    """
    What was found of a teacher on a data set.

    Args:
        teacher: the teacher in words.
        views: Dice of each foreground class by cross-validation over the labeled scans, for each view that was tried;
            empty where there is a single labeled scan, over which nothing can be chosen.
        chosen: the view with the highest mean.
        table: Dice on the validation cases by what the probe was given; ``None`` without such cases.
        probe: the probe of the chosen view, fitted on all labeled scans.
        class_names: names by label value, background first.
        preprocessing: transforms of a case.
        training: the labeled cases.
    """

    teacher: str
    views: Mapping[TeacherView, np.ndarray]
    chosen: TeacherView
    table: ProbeTable | None
    probe: OrganProbe
    class_names: Sequence[str]
    preprocessing: Compose = field(repr=False)
    training: Sequence[Mapping[str, str]] = field(repr=False)

    def __str__(self) -> str:
        lines = [f"Teacher: {self.teacher}."]
        if self.views:
            lines.append("Cross-validation over the labeled scans, mean Dice over points:")
            rows = [["layer", "mm of a token", "mean"]]
            rows += [
                [str(view.layer), f"{view.token_mm:g}", number(float(nan_mean(dice, axis=0)), 3)]
                for view, dice in self.views.items()
            ]
            lines += text_table(rows)
        lines.append(f"Layer {self.chosen.layer}, a token for {self.chosen.token_mm:g} mm.")
        if self.table is not None:
            lines += ["", "Linear probe, Dice over points of the validation cases:", str(self.table)]
        return "\n".join(lines)

    def draw(self, out_dir: str | Path, weighting: str) -> list[Path]:
        """
        Draws a slice of each labeled scan: ground truth, tokens, their weights in FKD, and what the probe says.

        Args:
            out_dir: folder of the pictures.
            weighting: see :class:`dinomix_monai.losses.FeatureDistillationLoss`.
        """
        folder, loss = Path(out_dir).expanduser(), FeatureDistillationLoss(weighting)
        folder.mkdir(parents=True, exist_ok=True)
        return [
            draw_probe(folder / f"scan_{place}.png", self.preprocessing(dict(case)), self.probe, self.class_names, loss)
            for place, case in enumerate(self.training, start=1)
        ]

    def propose(self, cases: Sequence[Mapping[str, str]], out_dir: str | Path) -> Iterator[Path]:
        """
        Writes label maps of scans, on the grid of each scan, ``NAME_seg.nii.gz`` for ``NAME.nii.gz``.

        Args:
            cases: with the path of an ``image`` each.
            out_dir: folder of the label maps.

        Yields:
            The path of each image, once its label map is written.
        """
        folder = Path(out_dir).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        back = Compose(
            [
                Invertd(Keys.PRED, self.preprocessing, orig_keys=Keys.IMAGE, nearest_interp=True),
                SaveLabeld(Keys.PRED, folder),
            ]
        )
        for case in tqdm(cases, "Proposals", unit="scan"):
            sample = self.preprocessing({Keys.IMAGE: case[Keys.IMAGE]})
            # With the history of the image, which is inverted.
            label = convert_to_dst_type(self.probe.segment(sample[Keys.IMAGE]), sample[Keys.IMAGE], torch.uint8)[0]
            back({**sample, Keys.PRED: label})
            yield Path(case[Keys.IMAGE])


def probe_dataset(
    parser: ConfigParser,
    layers: Sequence[int] | None = None,
    token_mm: Sequence[float] = (8.0,),
    num_slices: int = 16,
    max_scans: int = 8,
) -> DatasetProbe:
    """
    Fits linear probes to a teacher's tokens of the labeled scans, and scores them on the validation cases.

    Scans keep their own voxels. Layer and size of a token are chosen by cross-validation over the labeled scans, and
    the validation cases are looked at once, by the chosen one.

    Args:
        parser: the bundle's training configuration with all overlays and settings; it is changed.
        layers: blocks of the teacher to try; ``None`` for four of the second half of a ViT.
        token_mm: sides of the square that a token stands for, to try.
        num_slices: slices of each scan.
        max_scans: the first scans of each list that are looked at.

    Raises:
        ValueError: When there is no labeled scan, or a number is below 1.
    """
    if num_slices < 1 or max_scans < 1 or not token_mm:
        raise ValueError(
            f"num_slices and max_scans must be >= 1 and token_mm not empty, got {num_slices}, {max_scans}, {token_mm}."
        )
    parser.update({"spacing_mm": [-1.0, -1.0, -1.0]})
    get = parser.get_parsed_content
    datalist, device = get("datalist"), torch.device(get("device"))
    if not datalist.training:
        raise ValueError(
            f"dataset_dir must have a labeled scan under `training`, which the probe is fitted on, got none in "
            f"{get('dataset_dir')} ({datalist.describe()}). Label one."
        )
    preprocessing = Compose(get("volume_transforms"))
    training, validation = datalist.training[:max_scans], datalist.validation[:max_scans]
    num_classes = len(datalist.class_names)
    scans = [preprocessing(dict(case)) for case in training]
    model = {"model_name": get("teacher#model_name"), "allow_untrained": datalist.is_phantom}
    weights = get("teacher_weights")

    def features_of(view: TeacherView, weights: Any) -> PointFeatures:
        teacher = FoundationTeacher(weights=weights, layer=view.layer, **model).to(device)
        return PointFeatures(SliceTokens(teacher, channels="repeat"), view.token_mm)

    def points_of(features: PointFeatures, scans: Sequence[Mapping[str, Any]]) -> list[LabeledPoints]:
        return [gather_points(features, scan, num_slices) for scan in scans]

    teacher = FoundationTeacher(weights=weights, **model)
    candidates = [TeacherView(layer, mm) for layer in layers or _second_half(teacher.num_layers) for mm in token_mm]
    views: dict[TeacherView, np.ndarray] = {}
    kinds: dict[str, PointFeatures] = {_INTENSITIES: PointFeatures(None)}
    points: dict[str, list[LabeledPoints]] = {}
    if len(scans) > 1:
        for view in tqdm(candidates, "Views of the teacher", unit="view"):
            features = features_of(view, weights)
            found = points_of(features, scans)
            views[view] = cross_validated_dice(found, num_classes)
            chosen = max(views, key=lambda view: float(np.nan_to_num(nan_mean(views[view], axis=0))))
            if chosen == view:
                kinds[_TEACHER], points[_TEACHER] = features, found
    else:
        logger.warning(
            "There is a single labeled scan, so layer and size of a token cannot be chosen by cross-validation. Label "
            "another scan, or choose them."
        )
        chosen = candidates[len(candidates) // 2]
        kinds[_TEACHER] = features_of(chosen, weights)
    if teacher.pretrained:
        kinds[_UNTRAINED] = features_of(chosen, "none")
    points |= {kind: points_of(features, scans) for kind, features in kinds.items() if kind not in points}
    probes = {kind: OrganProbe.fit(kinds[kind], found, num_classes) for kind, found in points.items()}
    table = None
    if validation:
        judges = [preprocessing(dict(case)) for case in validation]
        columns = [kind for kind in (_TEACHER, _INTENSITIES, _UNTRAINED) if kind in kinds]
        dice = {kind: probes[kind].dice(points_of(kinds[kind], judges), num_classes) for kind in columns}
        labels = torch.cat([scan.labels for scan in points[_TEACHER]])
        counts = torch.bincount(labels, minlength=num_classes)[1:].numpy()
        table = ProbeTable(datalist.class_names, counts, dice)
    return DatasetProbe(
        teacher=teacher.describe(),
        views=views,
        chosen=chosen,
        table=table,
        probe=probes[_TEACHER],
        class_names=datalist.class_names,
        preprocessing=preprocessing,
        training=training,
    )


def _second_half(num_layers: int) -> list[int]:
    """Four layers from the middle to the last one, fewer where there are not as many."""
    return sorted({round(share * (num_layers - 1)) for share in (0.5, 0.7, 0.85, 1.0)})
