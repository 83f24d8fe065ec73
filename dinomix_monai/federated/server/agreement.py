"""The handshake: no round begins before all sites have the same teacher, labels and network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dinomix_monai.core.tensor_file import differing_names
from dinomix_monai.federated.protocol import VOXELS

__all__ = ["check_agreement", "version_differences"]


def check_agreement(
    answers: Mapping[str, Mapping[str, Any]], class_names: Sequence[str], teacher: str = ""
) -> dict[str, list[float]]:
    """
    Makes sure that the sites can train one model.

    It guards against mistakes; a site that means harm can answer what it likes.

    Args:
        answers: what each site said of itself, see :meth:`~dinomix_monai.federated.site.Site.describe`.
        class_names: names by label value of the model to train, background first.
        teacher: fingerprint that all teachers must have; empty to ask only that they are the same.

    Returns:
        Labeled voxels of each class over all sites, and those of labeled patches, by their names in the plan.

    Raises:
        ValueError: When they cannot; one sentence with the site and both values.
    """
    first = next(iter(answers))
    expected, where = (teacher, "in the job") if teacher else (answers[first]["teacher"], f"at {first}")
    for site, answer in answers.items():
        if answer["teacher"] != expected:
            raise ValueError(
                f"Frozen teachers must be the same everywhere, got {answer['teacher']} at {site} and {expected} "
                f"{where}."
            )
        if list(answer["class_names"]) != list(class_names):
            raise ValueError(
                f"`labels` must be the same everywhere, got {list(answer['class_names'])} at {site} and "
                f"{list(class_names)} in the job."
            )
        for name in VOXELS:
            if len(answer[name]) != len(class_names):
                raise ValueError(f"{name} must have {len(class_names)} numbers, got {len(answer[name])} at {site}.")
        own, other = answer["network"], answers[first]["network"]
        if different := differing_names(own, other):
            name = different[0]
            raise ValueError(
                f"Networks must be the same everywhere, got {name} of shape {own.get(name)} at {site} and "
                f"{other.get(name)} at {first}. Settings of the network belong in the job, not in a site's own."
            )
    totals = {name: np.sum([answer[name] for answer in answers.values()], axis=0, dtype=float) for name in VOXELS}
    if not totals["labeled_voxels"][1:].any():
        raise ValueError(f"Some site must have labels, got none at {', '.join(answers)}.")
    return {name: total.tolist() for name, total in totals.items()}


def version_differences(answers: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence for each package of which the sites have different versions."""
    names = sorted({name for answer in answers.values() for name in answer["versions"]})
    sentences = []
    for name in names:
        found = {site: answer["versions"].get(name, "none") for site, answer in answers.items()}
        if len(set(found.values())) > 1:
            sentences.append(f"{name}: " + ", ".join(f"{version} at {site}" for site, version in found.items()))
    return sentences
