"""What server and sites say to one another beside the weights."""

from __future__ import annotations

from monai.utils import StrEnum

__all__ = ["MetaKeys", "Models", "Tasks"]


class Tasks(StrEnum):
    """
    What the server asks of a site.

    ``HANDSHAKE`` comes first and carries no weights. ``TRAIN`` is a round. ``VALIDATE`` scores a model on the site's
    validation cases by the key metric, ``SCORE`` on its test cases by class. ``ALONE`` has the site train by itself, as
    long as it does in the federation, for comparison.
    """

    HANDSHAKE = "handshake"
    TRAIN = "train"
    VALIDATE = "validate"
    SCORE = "score"
    ALONE = "alone"


class MetaKeys(StrEnum):
    """Entries of a message's meta data: the run's plan, what is scored, and a site's answer."""

    PLAN = "plan"
    NAME = "name"
    ANSWER = "answer"
    ERROR = "error"


class Models(StrEnum):
    """Models that are scored: the one that the run began with, the best global one, and each site's without others."""

    BEFORE = "before"
    AFTER = "after"
    ALONE = "alone"
