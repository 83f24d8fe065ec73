"""Whether the sites that answered the handshake can train one model together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dinomix_monai.core.known_voxels import counts_if_all_known
from dinomix_monai.core.tensor_file import differing_names
from dinomix_monai.federated.protocol import VOXEL_COUNTS, SiteDescription

__all__ = ["check_agreement", "union_of_labels", "version_differences"]


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
        For each of :data:`~dinomix_monai.federated.protocol.VOXEL_COUNTS` the voxels of each class over all sites:
        those that are labeled, and those that patches would show if all sites had looked for all classes.

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
    labeled, shown = (np.array([each[count] for each in descriptions.values()], dtype=float) for count in VOXEL_COUNTS)
    if not labeled[:, 1:].any():
        raise ValueError(f"Some site must have labels, got none at {', '.join(descriptions)}.")
    looked_for = [[name in each["annotated"] for name in class_names[1:]] for each in descriptions.values()]
    return {
        "labeled_voxels": labeled.sum(axis=0).tolist(),
        "patch_voxels": _as_if_all_looked(shown, np.array(looked_for)).tolist(),
    }


def union_of_labels(labels: Mapping[str, Sequence[str]], class_names: Sequence[str] = ("background",)) -> list[str]:
    """
    The classes of a model that learns what any site has.

    Args:
        labels: names of each site's own classes by label value, background first, by the site's name.
        class_names: classes that the model begins with, background first.

    Returns:
        ``class_names``, and behind them those of the sites, from one site after the other by their names.

    Raises:
        ValueError: When sites have given one name to different label values, which is what a list of labels looks like
            that does not belong to its label maps.

    Example:
        >>> union_of_labels({"site-1": ["background", "liver"], "site-2": ["background", "gallbladder"]})
        ['background', 'liver', 'gallbladder']
    """
    union = list(class_names)
    found: dict[str, tuple[int, str]] = {}
    for site, names in sorted(labels.items()):
        for value, name in enumerate(names[1:], start=1):
            other_value, other = found.setdefault(name, (value, site))
            if value != other_value:
                raise ValueError(
                    f"A class must have the same value in the `labels` of all sites, got {name} as {value} at {site} "
                    f"and as {other_value} at {other}. If both mean the same, renumber one of them in its list and its "
                    "label maps; otherwise rename it."
                )
            if name not in union:
                union.append(name)
    return union


def _as_if_all_looked(voxels: np.ndarray, looked_for: np.ndarray) -> np.ndarray:
    """
    Sums over sites, in which the share of a class is the one at the sites that have looked for it.

    Args:
        voxels: of each class at each site, shape (sites, classes), background first. What a site has not looked for is
            background there.
        looked_for: whether a site has looked for a class, shape (sites, classes - 1).
    """
    total, has_labels = voxels.sum(axis=0), voxels.any(axis=1)
    if looked_for[has_labels].all():
        return total
    return counts_if_all_known(total, voxels.sum(axis=1), np.pad(looked_for, [(0, 0), (1, 0)], constant_values=True))


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
