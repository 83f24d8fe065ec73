"""The command ``next``: which scans of a data set to label next."""

from __future__ import annotations

from pathlib import Path

from monai.bundle import ConfigParser
from monai.utils.enums import CommonKeys as Keys
from tqdm import tqdm

from dinomix_monai.data import dataset_root, relative_name
from dinomix_monai.selection.scan_order import NextScan, rank_scans
from dinomix_monai.selection.thumbnail import Thumbnails
from dinomix_monai.volumes import image_name

__all__ = ["next_scans"]


def next_scans(parser: ConfigParser, count: int = 4, seed: int = 0) -> list[NextScan]:
    """
    The scans of a data set to label next, see :func:`rank_scans`; validation and test cases are not looked at.

    Args:
        parser: the bundle's training configuration with all overlays and settings.
        count: how many, at most.
        seed: of the lots.

    Returns:
        Unlabeled scans by their path in the data set, the next one first.

    Raises:
        ValueError: When ``count`` is below 1, no scan is unlabeled, or one cannot be read.
    """
    if count < 1:
        raise ValueError(f"count must be >= 1, got {count}.")
    get = parser.get_parsed_content
    datalist, root = get("datalist"), dataset_root(get("dataset_dir"))
    if not datalist.unlabeled:
        raise ValueError(
            f"dataset_dir must have a scan under `unlabeled` that could be labeled next, got none in "
            f"{get('dataset_dir')} ({datalist.describe()}). List scans without labels there."
        )
    thumbnails = Thumbnails(Path(get("output_dir")) / "thumbnails")
    cases = [*datalist.training, *datalist.unlabeled]
    names = [relative_name(image_name(case[Keys.IMAGE]), root) for case in cases]
    looked = tqdm(zip(names, cases), "Looking at scans", total=len(cases), unit="scan", disable=None)
    found = {name: thumbnails(case[Keys.IMAGE]) for name, case in looked}
    return rank_scans(found, names[: len(datalist.training)], root, count, seed)
