"""The words of the messages between server and sites: tasks, forms of an update, scores and meta data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from monai.utils import StrEnum

__all__ = ["ClassScores", "MetaKeys", "ScoredModel", "TaskName", "UpdateForm"]

ClassScores = Mapping[str, Sequence[float]]
"""
A site's scores of a model: for the name of each class the mean Dice over the site's cases, and the number of cases that
the mean is over. A class that no case has is left out.
"""


class TaskName(StrEnum):
    """
    What the server asks a site to do, by NVFlare's name of the task.

    ``LABELS``: name its own classes. ``HANDSHAKE``: describe itself. The messages of both carry no weights. ``TRAIN``:
    score the global model on the validation cases and train it for one round. ``VALIDATE``: score the global model on
    the validation cases alone. ``SCORE``: score a model on the test cases, class by class. ``ALONE``: train without the
    other sites for as many epochs as the whole run has, and score what comes of it; the comparison at the end of a run.
    """

    LABELS = "labels"
    HANDSHAKE = "handshake"
    TRAIN = "train"
    VALIDATE = "validate"
    SCORE = "score"
    ALONE = "alone"


class UpdateForm(StrEnum):
    """
    The form in which a site sends its weights after a round, ``transfer`` of :class:`RunPlan`.

    ``FULL``: the weights themselves. ``DIFFERENCE``: the weights minus those of the global model that the round began
    with. ``HALF_DIFFERENCE``: this difference in half precision, which is half as many bytes. Counters, which are
    whole numbers, stay whole numbers in each form.
    """

    FULL = "full"
    DIFFERENCE = "difference"
    HALF_DIFFERENCE = "half_difference"


class ScoredModel(StrEnum):
    """
    The models that sites score at the end of a run.

    ``BEFORE``: the global model that the run began with. ``AFTER``: the best global model. ``ALONE``: the model that a
    site has trained without the others.
    """

    BEFORE = "before"
    AFTER = "after"
    ALONE = "alone"


class MetaKeys(StrEnum):
    """
    Keys of a message's meta data.

    From the server: ``PLAN``, the run's plan, and ``SCORED_MODEL``, which model the message carries. From a site:
    ``ANSWER``, what the task asked for, or ``ERROR``, why the site is not ready.
    """

    PLAN = "plan"
    SCORED_MODEL = "name"
    ANSWER = "answer"
    ERROR = "error"
