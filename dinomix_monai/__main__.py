"""``python -m dinomix_monai COMMAND``: what is done around a training; training is ``python -m monai.bundle``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import fire

__all__ = ["atlas", "phantom"]


def phantom(dataset_dir: str, seed: int = 0) -> None:
    """
    Makes the procedural abdominal phantom, a data set on which everything runs without a download.

    Args:
        dataset_dir: folder to write to.
        seed: seed of the patients; 0 is what the bundle makes on first use.
    """
    from dinomix_monai.data import make_phantom

    print(make_phantom(dataset_dir, seed=seed))


def atlas(
    dataset_dir: str,
    teacher: str = "vit_small_patch16_dinov3",
    weights: str = "auto",
    config_file: str | Sequence[str] = "bundle/configs/train.json",
    **settings: Any,
) -> None:
    """
    Computes the frozen teacher's tokens of all training volumes, labeled and unlabeled, as training would at its start.

    What is there already is left as it is, so a killed run goes on where it stopped.

    Args:
        dataset_dir: folder of the data set.
        teacher: name of a DINOv3 of timm.
        weights: ``auto``, ``none`` or the path of a file.
        config_file: the bundle's training configuration and its overlays, as training is given them.
        **settings: ids of the configuration with other values, as training is given them, such as ``--atlas_dir``.

    Raises:
        ValueError: When the configuration makes no use of an atlas.
    """
    from monai.bundle import ConfigParser

    parser = ConfigParser()
    parser.read_config(config_file)
    chosen = {"dataset_dir": dataset_dir, "teacher_model": teacher, "teacher_weights": weights}
    parser.update({**chosen, **settings})
    if parser.get_parsed_content("no_atlas"):
        raise ValueError(
            "config_file must have teacher_key 'origin' and a distillation_weight above 0, got "
            f"{parser.get_parsed_content('teacher_key')!r} and {parser.get_parsed_content('distillation_weight')}: "
            "training would make no atlas."
        )
    for name in ("train#dataset", "train#unlabeled_dataset"):
        parser.get_parsed_content(name)
    print(parser.get_parsed_content("atlas").describe())


if __name__ == "__main__":
    fire.Fire({"atlas": atlas, "phantom": phantom}, name="dinomix_monai")
