"""One data set dealt out to several sites, to try a federation on one machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dinomix_monai.core.files import write_json
from dinomix_monai.data.datalist import SECTIONS, dataset_root, read_datalist

__all__ = ["split_dataset"]


def split_dataset(
    dataset_dir: str | Path,
    sites: int,
    unlabeled_sites: int = 0,
    phantom_dir: str | Path | None = None,
    file: str = "dataset.json",
    allow_outside: bool = False,
) -> list[Path]:
    """
    Writes a datalist for each site beside that of the whole data set; no image is copied.

    Labeled cases of each section are dealt in turn to the sites with labels, unlabeled cases to all. Sites 1 to
    ``sites - unlabeled_sites`` have labels. Files are replaced in one move, so several processes may split at once.

    Args:
        dataset_dir: folder of the data set.
        sites: number of sites.
        unlabeled_sites: how many of them have no label at all.
        phantom_dir: see :func:`read_datalist`.
        file: name of the list to split.
        allow_outside: see :func:`read_datalist`.

    Returns:
        The datalist of each site.

    Raises:
        ValueError: When there are fewer than one site with labels, or fewer cases under ``training`` than those.
    """
    labeled_sites = sites - unlabeled_sites
    if unlabeled_sites < 0 or labeled_sites < 1:
        raise ValueError(
            f"sites and unlabeled_sites must leave at least one site with labels, got {sites} and {unlabeled_sites}."
        )
    root = dataset_root(dataset_dir)
    datalist = read_datalist(root, phantom_dir, file, allow_outside)
    if len(datalist.training) < labeled_sites:
        raise ValueError(
            f"training must list a case for each of {labeled_sites} sites with labels, got {len(datalist.training)}."
        )
    content = json.loads((root / file).read_bytes())
    suffix = f"-{unlabeled_sites}-unlabeled" if unlabeled_sites else ""
    paths = []
    for number in range(sites):
        dealt: dict[str, Any] = dict(content)
        for section in SECTIONS:
            receivers = sites if section == "unlabeled" else labeled_sites
            dealt[section] = (content.get(section) or [])[number::receivers] if number < receivers else []
        paths.append(write_json(root / f"site-{number + 1}-of-{sites}{suffix}.json", dealt, is_shared=True))
    return paths
