"""``python -m dinomix_monai COMMAND``: what is done around a training; training is ``python -m monai.bundle``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from json import dumps

import fire

from dinomix_monai.data import check_dataset, findings_table, make_phantom

__all__ = ["check", "phantom"]


def check(
    dataset_dir: str,
    datalist_file: str = "dataset.json",
    patch_size: Sequence[int] | None = None,
    spacing_mm: Sequence[float] | None = None,
    intensity_window: Sequence[float] | None = None,
    json: bool = False,
) -> None:
    """
    Reads a data set once and prints all that is wrong with it; the exit code is 1 where training must not begin.

    Args:
        dataset_dir: folder of the data set.
        datalist_file: name of its list.
        patch_size: patch that will be trained on, to warn of smaller volumes.
        spacing_mm: voxel size that it will be trained at.
        intensity_window: intensities that will be mapped to [0, 1], to warn of images that do not fit them.
        json: print one JSON object instead of a table.
    """
    findings = check_dataset(
        dataset_dir,
        file=datalist_file,
        patch_size=patch_size,
        spacing_mm=spacing_mm,
        intensity_window=intensity_window,
    )
    severities = [finding.severity for finding in findings]
    counts = {"errors": severities.count("error"), "warnings": severities.count("warning")}
    if json:
        print(dumps({**counts, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        print(findings_table(findings) if findings else "No problem found.")
    sys.exit(1 if counts["errors"] else 0)


def phantom(dataset_dir: str, seed: int = 0) -> None:
    """
    Makes the procedural abdominal phantom, a data set on which everything runs without a download.

    Args:
        dataset_dir: folder to write to.
        seed: seed of the patients; 0 is what the bundle makes on first use.
    """
    print(make_phantom(dataset_dir, seed=seed))


if __name__ == "__main__":
    fire.Fire({"check": check, "phantom": phantom}, name="dinomix_monai")
