"""Whether the sites that answered the handshake can train one model together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dinomix_monai.core.tensor_file import differing_names
from dinomix_monai.federated.protocol import VOXEL_COUNTS, SiteDescription

__all__ = ["check_agreement", "version_differences"]


def check_agreement(
    descriptions: Mapping[str, SiteDescription], class_names: Sequence[str], num_channels: int = 1, teacher: str = ""
) -> dict[str, list[float]]:
    """
    Refuses sites that cannot train one model together: all need the same teacher, classes and network.

    This guards against mistakes. A site that means harm can describe itself as it likes.

    Args:
        descriptions: what each site says of itself, by the site's name.
        class_names: names of the model's classes by label value, background first.
        num_channels: channels of an image in the job.
        teacher: fingerprint that all teachers must have; empty to ask only that they are the same.

    Returns:
        For each of :data:`~dinomix_monai.federated.protocol.VOXEL_COUNTS` the sums over all sites by class.

    Raises:
        ValueError: When the sites do not agree, or none of them has labels. One sentence names the site and both
            values.
    """
    first = next(iter(descriptions))
    expected, where = (teacher, "in the job") if teacher else (descriptions[first]["teacher"], f"at {first}")
    for site, description in descriptions.items():
        if description["teacher"] != expected:
            raise ValueError(
                f"Frozen teachers must be the same everywhere, got {description['teacher']} at {site} and {expected} "
                f"{where}."
            )
        if list(description["class_names"]) != list(class_names):
            raise ValueError(
                f"`labels` must be the same everywhere, got {list(description['class_names'])} at {site} and "
                f"{list(class_names)} in the job."
            )
        _check_channels(site, description["channel_names"], first, descriptions[first]["channel_names"], num_channels)
        for count in VOXEL_COUNTS:
            if len(description[count]) != len(class_names):
                raise ValueError(
                    f"{count} must have {len(class_names)} numbers, got {len(description[count])} at {site}."
                )
        own, other = description["network"], descriptions[first]["network"]
        if different := differing_names(own, other):
            weight = different[0]
            raise ValueError(
                f"Networks must be the same everywhere, got {weight} of shape {own.get(weight)} at {site} and "
                f"{other.get(weight)} at {first}. Settings of the network belong in the job, not in a site's own."
            )
    totals = {
        count: np.sum([description[count] for description in descriptions.values()], axis=0, dtype=float)
        for count in VOXEL_COUNTS
    }
    if not totals["labeled_voxels"][1:].any():
        raise ValueError(f"Some site must have labels, got none at {', '.join(descriptions)}.")
    return {count: total.tolist() for count, total in totals.items()}


def _check_channels(site: str, own: Sequence[str], first: str, other: Sequence[str], number: int) -> None:
    if len(own) != number:
        raise ValueError(
            f"Images must have the channels of the job everywhere, got {len(own)} at {site} and {number} in the job, "
            "whose settings say `num_channels`."
        )
    if all(own) and all(other) and list(own) != list(other):
        raise ValueError(
            f"Channels must be the same in the same order everywhere, got {', '.join(own)} at {site} and "
            f"{', '.join(other)} at {first}."
        )


def version_differences(descriptions: Mapping[str, SiteDescription]) -> list[str]:
    """
    Compares the versions of Python and of packages at the sites.

    Args:
        descriptions: what each site says of itself, by the site's name.

    Returns:
        A sentence for each package of which the sites have different versions.
    """
    packages = sorted({package for description in descriptions.values() for package in description["versions"]})
    sentences = []
    for package in packages:
        found = {site: description["versions"].get(package, "none") for site, description in descriptions.items()}
        if len(set(found.values())) > 1:
            sentences.append(f"{package}: " + ", ".join(f"{version} at {site}" for site, version in found.items()))
    return sentences
