"""The command ``next``: which scans of a data set to label next."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from dinomix_monai.data import dataset_root, patient_name, relative_name
from dinomix_monai.probe import Intensities
from dinomix_monai.selection.scan_look import ScanLooker
from dinomix_monai.selection.scan_order import choose_scans
from dinomix_monai.teacher import FoundationTeacher, MissingWeightsError, SliceTokens
from dinomix_monai.volumes import image_name

__all__ = ["NextScan", "next_scans", "rank_scans", "scan_looker"]

logger = logging.getLogger(__name__)

# The layer of a ViT that tells organs apart best, as a share of its depth, where none is given.
_LAYER = 0.7


@dataclass(frozen=True)
class NextScan:
    """
    A scan to label next.

    Args:
        name: its name.
        reason: why, in a sentence.
    """

    name: str
    reason: str


def next_scans(parser: ConfigParser, count: int = 4) -> list[NextScan]:
    """
    The scans of a data set to label next.

    Args:
        parser: the bundle's training configuration with all overlays and settings.
        count: how many, at most.

    Returns:
        Unlabeled scans by their path in the data set, the next one first.

    Raises:
        ValueError: When ``count`` is below 1, no scan is unlabeled, or one cannot be read.
    """
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}.")
    datalist = parser.get_parsed_content("datalist")
    if not datalist.unlabeled:
        raise ValueError(
            f"dataset_dir must have a scan under `unlabeled`, one of which could be labeled next, got none in "
            f"{parser.get_parsed_content('dataset_dir')} ({datalist.describe()})."
        )
    looker, root = scan_looker(parser), dataset_root(parser.get_parsed_content("dataset_dir"))
    cases = [*datalist.training, *datalist.unlabeled]
    names = [relative_name(image_name(case[Keys.IMAGE]), root) for case in cases]
    looks = {
        name: looker(case[Keys.IMAGE])
        for name, case in zip(names, tqdm(cases, "Looking at scans", unit="scan", disable=None))
    }
    return rank_scans(looks, names[: len(datalist.training)], root, count)


def scan_looker(parser: ConfigParser) -> ScanLooker:
    """
    Looks at scans with the teacher of a configuration, or by their intensities where it has no pre-trained one.

    Of a ViT of which no layer is given, a middle one is taken.
    """
    config, get = parser.get("teacher"), parser.get_parsed_content
    model = {name: get(f"teacher#{name}") for name in ("model_name", "image_mean", "image_std") if name in config}
    weights, layer = get("teacher_weights"), get("teacher#layer")
    teacher: Any = Intensities()
    try:
        found = FoundationTeacher(weights=weights, layer=layer, **model)
    except MissingWeightsError as error:
        logger.warning("No pre-trained teacher: scans are compared by their intensities alone. %s", error)
    else:
        if found.pretrained:
            is_open = layer is None and not found.is_convnext
            middle = round(_LAYER * (found.num_layers - 1))
            teacher = FoundationTeacher(weights=weights, layer=middle, **model) if is_open else found
        else:
            logger.warning("No pre-trained teacher: scans are compared by their intensities alone.")
    folder = Path(get("token_cache#folder")) / "looks"
    return ScanLooker(SliceTokens(teacher, channels="repeat"), folder, get("amp_dtype"), get("device"))


def rank_scans(looks: Mapping[str, torch.Tensor], labeled: Sequence[str], root: Path, count: int) -> list[NextScan]:
    """
    Ranks scans by what they look like, see :func:`choose_scans`, with a reason for each.

    Args:
        looks: of all scans, labeled or not, by name.
        labeled: names of those that have a label.
        root: folder of the data set, from which names tell patients.
        count: how many to rank at most.

    Returns:
        Scans without a label, the next one first.
    """
    names = list(looks)
    patients = [patient_name(root / name, root) for name in names]
    choices = choose_scans(list(looks.values()), [names.index(name) for name in labeled], count, patients)
    ranked = []
    for choice in choices:
        if choice.like is not None:
            is_same = patients[choice.scan] == patients[choice.like]
            what = "is of the same patient as" if is_same else "looks nearly the same as"
            reason = f"it {what} {names[choice.like]}, and so comes after all others"
        elif choice.cluster_size == 1:
            reason = "no other scan looks like it"
        else:
            before = f"{choice.seen or 'none'} of which {'are' if choice.seen > 1 else 'is'} labeled or named before it"
            reason = f"it is the most typical of {choice.cluster_size} scans that look alike, {before}"
        ranked.append(NextScan(names[choice.scan], reason))
    return ranked
