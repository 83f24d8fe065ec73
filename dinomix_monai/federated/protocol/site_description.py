"""What a site tells of itself before there is a model."""

from __future__ import annotations

from typing import Literal, TypedDict

__all__ = ["VOXEL_COUNTS", "SiteDescription", "SiteLabels"]

VOXEL_COUNTS: tuple[Literal["labeled_voxels", "patch_voxels"], ...] = ("labeled_voxels", "patch_voxels")
"""The counts by class that a site tells of its labels. The plan has those of all sites under the same names."""


class SiteLabels(TypedDict):
    """A site's answer to ``labels``, where a run takes the union of the sites' classes."""

    class_names: list[str]
    """Names of the site's own classes by label value, background first."""


class SiteDescription(TypedDict):
    """
    A site's answer to the handshake: plain numbers and text, and nothing beside these entries.

    The server writes it to ``handshake.json`` as it came.
    """

    teacher: str
    """SHA-256 of the frozen teacher, or ``none`` where no teacher is used."""
    class_names: list[str]
    """Names of the model's classes, background first."""
    annotated: list[str]
    """Names of those that somebody has looked for in a labeled training case."""
    channel_names: list[str]
    """Names of the channels of an image; empty texts where the data set does not name them."""
    network: dict[str, list[int]]
    """Shape of each weight of the network by its name."""
    labeled_voxels: list[int]
    """Labeled voxels of each class in the site's training cases, background first; zeros without labels."""
    patch_voxels: list[float]
    """Expected voxels of each class in a random labeled patch, see :func:`dinomix_monai.data.patch_voxels`."""
    cases: dict[str, int]
    """Number of training, unlabeled, validation and test cases."""
    versions: dict[str, str]
    """Versions of Python and of the packages that decide about a training."""
