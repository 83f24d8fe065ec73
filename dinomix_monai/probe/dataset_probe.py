"""The command ``probe``: whether a teacher sees the organs of a data set, and where it sees them best."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from dinomix_monai.core.text import number, text_table
from dinomix_monai.data import dataset_root, patient_name
from dinomix_monai.engines import ScanLabeler, ScanTokens, TokenProbe
from dinomix_monai.losses import FeatureDistillationLoss
from dinomix_monai.metrics.class_dice import class_dice
from dinomix_monai.metrics.nan_means import nan_mean
from dinomix_monai.probe.intensities import Intensities
from dinomix_monai.probe.picture import draw_probe
from dinomix_monai.probe.probe_table import ProbeTable
from dinomix_monai.teacher import FoundationTeacher, SliceTokens
from dinomix_monai.volumes import first_file, image_name

__all__ = ["DatasetProbe", "TeacherView", "probe_dataset"]

logger = logging.getLogger(__name__)

_TEACHER, _UNTRAINED, _INTENSITIES = "teacher", "untrained teacher", "intensities"


@dataclass(frozen=True, order=True)
class TeacherView:
    """
    How a teacher looks at a scan.

    Args:
        layer: block whose output gives the tokens.
        cell: voxels of a token along each axis.
    """

    layer: int
    cell: tuple[int, ...]


@dataclass(frozen=True)
class DatasetProbe:
    """
    What was found of a teacher on a data set.

    Args:
        teacher: the teacher in words.
        views: Dice of each foreground class by cross-validation over the labeled patients, for each view that was
            tried; empty where there is a single labeled patient, over whom nothing can be chosen.
        chosen: the view with the highest mean.
        table: Dice on the validation cases by what the probe was given; ``None`` without such cases.
        probe: the probe of the chosen view, fitted to all labeled scans.
        scans: the labeled scans as the chosen view shows them.
        class_names: names by label value, background first.
        preprocessing: transforms of a case.
        training: the labeled cases.
        patients: the patient of each of them.
    """

    teacher: str
    views: Mapping[TeacherView, np.ndarray]
    chosen: TeacherView
    table: ProbeTable | None
    probe: TokenProbe
    scans: Sequence[ScanTokens] = field(repr=False)
    class_names: Sequence[str]
    preprocessing: Compose = field(repr=False)
    training: Sequence[Mapping[str, str]] = field(repr=False)
    patients: Sequence[str] = field(repr=False)

    def __str__(self) -> str:
        lines = [f"Teacher: {self.teacher}."]
        if self.views:
            lines.append("Cross-validation over the labeled patients, mean Dice:")
            rows = [["layer", "voxels of a token", "mean"]]
            rows += [
                [str(view.layer), " x ".join(map(str, view.cell)), number(float(nan_mean(dice, axis=0)), 3)]
                for view, dice in self.views.items()
            ]
            lines += text_table(rows)
        cell = "[" + ",".join(map(str, self.chosen.cell)) + "]"
        lines.append(f"For a training: --teacher#layer {self.chosen.layer} --report#probe#cell '{cell}'")
        if self.table is not None:
            lines += ["", "Linear probe, Dice on the validation cases:", str(self.table)]
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
        if len(set(self.patients)) > 1:
            found, title = _held_out(self.probe, self.scans, self.patients), "linear probe of the other patients"
        else:
            found = [_segmented(self.probe, scan) for scan in self.scans]
            title = "linear probe, fitted to this patient"
        return [
            draw_probe(
                folder / f"scan_{place}.png",
                self.preprocessing(dict(case)),
                scan.tokens,
                {title: labels},
                self.class_names,
                loss,
            )
            for place, (case, scan, labels) in enumerate(zip(self.training, self.scans, found), start=1)
        ]

    def propose(self, cases: Sequence[Mapping[str, Any]], out_dir: str | Path) -> Iterator[Path]:
        """
        Writes label maps of scans, on the grid of each scan, ``NAME_seg.nii.gz`` for ``NAME.nii.gz``.

        Args:
            cases: with the path of an ``image`` each.
            out_dir: folder of the label maps.

        Yields:
            The path of each image, once its label map is written.
        """
        labeler = ScanLabeler(
            self.preprocessing, lambda image: self.probe.logits(self.probe.tokens(image[0]), image.shape[2:])[None]
        )
        for case in tqdm(cases, "Proposals", unit="scan"):
            labeler.write(case[Keys.IMAGE], Path(out_dir).expanduser())
            yield Path(first_file(case[Keys.IMAGE]))


def probe_dataset(
    parser: ConfigParser,
    layers: Sequence[int] | None = None,
    cells: Sequence[Sequence[int]] | None = None,
    max_scans: int = 8,
) -> DatasetProbe:
    """
    Fits linear probes to a teacher's tokens of the labeled scans, and scores them on the validation cases.

    Scans are preprocessed as for training. Layer and size of a token are chosen by cross-validation over the labeled
    patients, and the validation cases are looked at once, by the chosen one.

    Args:
        parser: the bundle's training configuration with all overlays and settings.
        layers: blocks of the teacher to try; ``None`` for four of the second half of a ViT.
        cells: voxels of a token along each axis, to try; ``None`` for those of the configuration's ``report#probe``.
        max_scans: the first scans of each list that are looked at.

    Raises:
        ValueError: When there is no labeled scan, or ``max_scans`` is below 1.
    """
    if max_scans < 1:
        raise ValueError(f"max_scans must be >= 1, got {max_scans}.")
    get = parser.get_parsed_content
    datalist, device = get("datalist"), torch.device(get("device"))
    if not datalist.training:
        raise ValueError(
            f"dataset_dir must have a labeled scan under `training`, which the probe is fitted to, got none in "
            f"{get('dataset_dir')} ({datalist.describe()}). Label one."
        )
    preprocessing = Compose(get("volume_transforms"))
    training, validation = datalist.training[:max_scans], datalist.validation[:max_scans]
    num_classes = len(datalist.class_names)
    model = {"model_name": get("teacher#model_name"), "allow_untrained": datalist.is_phantom}
    weights, dtype = get("teacher_weights"), get("amp_dtype")

    def probe_of(teacher: Any, cell: Sequence[int]) -> TokenProbe:
        return TokenProbe(SliceTokens(teacher, channels="repeat"), cell, num_classes, dtype)

    def seen_by(probe: TokenProbe, volumes: Sequence[Mapping[str, Any]]) -> list[ScanTokens]:
        return [probe.scan_tokens(volume) for volume in volumes]

    def teacher_of(layer: Any) -> FoundationTeacher:
        return FoundationTeacher(weights=weights, layer=layer, **model).to(device)

    labeled, judging = ([preprocessing(dict(case)) for case in cases] for cases in (training, validation))
    first = teacher_of(None)
    sizes = [tuple(cell) for cell in ([get("report#probe#cell")] if cells is None else cells)]
    tried = sorted(set(layers or _second_half(first.num_layers)))
    # The layers of a ViT come from one look at each slice.
    looks = [[layer] for layer in tried] if first.is_convnext else [tried]
    views: dict[TeacherView, np.ndarray] = {}
    best: tuple[float, TeacherView, list[ScanTokens]] | None = None
    patients = [patient_name(image_name(case[Keys.IMAGE]), dataset_root(get("dataset_dir"))) for case in training]
    if len(set(patients)) > 1:
        for cell, look in tqdm([(cell, look) for cell in sizes for look in looks], "Views of the teacher", unit="view"):
            looker = probe_of(teacher_of(look), cell)
            seen = seen_by(looker, labeled)
            for part, layer in enumerate(look):
                own = [replace(scan, tokens=scan.tokens.chunk(len(look))[part]) for scan in seen]
                view = TeacherView(layer, cell)
                views[view] = _class_dice(_held_out(looker, own, patients), own, num_classes)
                mean = float(np.nan_to_num(nan_mean(views[view], axis=0)))
                if best is None or mean > best[0]:
                    best = mean, view, own
    else:
        logger.warning(
            "There is a single labeled patient, so layer and size of a token cannot be chosen by cross-validation. "
            "Label a scan of another one, or choose them."
        )
    chosen = TeacherView(tried[len(tried) // 2], sizes[len(sizes) // 2]) if best is None else best[1]
    probe = probe_of(teacher_of(chosen.layer), chosen.cell)
    scans = seen_by(probe, labeled) if best is None else best[2]
    table = None
    if validation:
        kinds = {_TEACHER: probe, _INTENSITIES: probe_of(Intensities(), chosen.cell)}
        if first.pretrained:
            untrained = FoundationTeacher(weights="none", layer=chosen.layer, model_name=first.model_name)
            kinds[_UNTRAINED] = probe_of(untrained.to(device), chosen.cell)
        dice = {}
        for kind, each in kinds.items():
            each.fit(scans if each is probe else seen_by(each, labeled))
            judges = seen_by(each, judging)
            dice[kind] = _class_dice([_segmented(each, scan) for scan in judges], judges, num_classes)
        labels = torch.cat([scan.label.flatten() for scan in scans])
        voxels = torch.bincount(labels, minlength=num_classes)[1:].cpu().numpy()
        table = ProbeTable(datalist.class_names, voxels, dice)
    return DatasetProbe(
        teacher=first.describe(),
        views=views,
        chosen=chosen,
        table=table,
        probe=probe.fit(scans),
        scans=scans,
        class_names=datalist.class_names,
        preprocessing=preprocessing,
        training=training,
        patients=patients,
    )


def _second_half(num_layers: int) -> list[int]:
    """Four layers from the middle to the last one, fewer where there are not as many."""
    return sorted({round(share * (num_layers - 1)) for share in (0.5, 0.7, 0.85, 1.0)})


def _segmented(probe: TokenProbe, scan: ScanTokens) -> torch.Tensor:
    """Classes of the voxels of a scan, shape (H, W, D)."""
    return probe.logits(scan.tokens, scan.label.shape).argmax(0)


def _held_out(probe: TokenProbe, scans: Sequence[ScanTokens], patients: Sequence[str]) -> list[torch.Tensor]:
    """Classes of each scan by a probe of the other patients' scans; the given probe stays as it is."""
    other = copy.copy(probe)
    found: dict[int, torch.Tensor] = {}
    for left_out in sorted(set(patients)):
        other.fit([scan for scan, patient in zip(scans, patients) if patient != left_out])
        places = [place for place, patient in enumerate(patients) if patient == left_out]
        found |= {place: _segmented(other, scans[place]) for place in places}
    return [found[place] for place in range(len(scans))]


def _class_dice(found: Sequence[torch.Tensor], scans: Sequence[ScanTokens], num_classes: int) -> np.ndarray:
    """Mean Dice of each foreground class over the scans that show it, shape (num_classes - 1,)."""
    return nan_mean(
        np.stack([class_dice(labels, scan.label, num_classes) for labels, scan in zip(found, scans)]), axis=0
    )
