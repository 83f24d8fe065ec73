"""Offline self-training: labels of a first model for the scans that have none."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.transforms import Compose
from monai.utils.enums import CommonKeys as Keys
from torch import nn
from tqdm import tqdm

from dinomix_monai.core.files import write_json
from dinomix_monai.engines import ScanLabeler
from dinomix_monai.models import load_model
from dinomix_monai.teacher import fingerprint
from dinomix_monai.volumes import first_file, label_path

__all__ = ["label_cases"]

logger = logging.getLogger(__name__)


@torch.no_grad()
def label_cases(
    cases: Sequence[Mapping[str, str]],
    model_file: str | Path,
    network: nn.Module,
    inferer: Callable,
    preprocessing: Compose,
    output_dir: str | Path,
) -> list[dict[str, Any]]:
    """
    Labels scans by a trained model, as ``inferring`` does.

    Label maps that the same model has written there are kept, so a run that was stopped goes on.

    Reference: Lee, "Pseudo-Label: The Simple and Efficient Semi-Supervised Learning Method for Deep Neural Networks",
    ICML workshop 2013.

    Args:
        cases: scans, with the path of an ``image`` each.
        model_file: the model.
        network: its network, whose weights are replaced.
        inferer: called with images and the network, gives logits.
        preprocessing: transforms of an image before it.
        output_dir: folder of the label maps.

    Returns:
        ``image`` and ``label`` of each scan.

    Raises:
        ValueError: When ``model_file`` is ``None``, or not the weights of the network.
        FileNotFoundError: When there is no such model.
    """
    if model_file is None:
        raise ValueError(
            "first_model must be a model that was trained on the labeled cases, got None. Train one with "
            "configs/baseline/supervised.json and pass --first_model OUTPUT_DIR/models/model.pt."
        )
    load_model(network, model_file, "first_model").eval()
    folder = Path(output_dir)
    about, digest = folder / "model.json", fingerprint(network.state_dict())
    is_known = about.is_file() and json.loads(about.read_bytes()).get("fingerprint") == digest
    device = next(network.parameters()).device
    labeler = ScanLabeler(preprocessing, lambda image: inferer(image.to(device), network))
    labeled = []
    for place, case in enumerate(tqdm(cases, "Labels of the first model", unit="scan")):
        # A folder for each: two scans may have one name.
        label = label_path(folder / str(place), first_file(case[Keys.IMAGE]))
        labeled.append({Keys.IMAGE.value: case[Keys.IMAGE], Keys.LABEL.value: str(label)})
        if is_known and label.is_file():
            continue
        labeler.write(case[Keys.IMAGE], folder / str(place))
    write_json(about, {"fingerprint": digest, "model": str(model_file)})
    return labeled
