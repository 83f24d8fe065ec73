"""The table at the end of a run: the Dice of each class, over all sites and at each."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dinomix_monai.core.text import number, text_table
from dinomix_monai.federated.protocol import ClassScores

__all__ = ["SUMMARY_FILE", "Summary", "federation_table", "pool_case_scores", "read_summary"]

SUMMARY_FILE = "summary.json"
"""Name of the file that the controller leaves in the run's folder at the server."""


@dataclass(frozen=True)
class Summary:
    """
    What a run has come to; its text is the table at the end of a run.

    Args:
        class_names: names of the classes by label value, background first.
        best: mean of ``val_mean_dice`` over the sites for the best global model; ``None`` without validation cases.
        scores: for the name of each model the scores of each site, by the site's name.
        is_whole: whether the run has come to its end; ``False`` while the trainings alone go on.
        taught_by: for the name of each class the sites with labeled voxels of it.
    """

    class_names: Sequence[str]
    best: float | None
    scores: Mapping[str, Mapping[str, ClassScores]]
    is_whole: bool
    taught_by: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        heading = "Dice of the global model before and after federation"
        if "alone" in self.scores:
            heading += ", and of each site's own model alone"
        best = "no validation cases" if self.best is None else f"{self.best:.4f} on validation"
        table = federation_table(self.class_names, self.scores, self.taught_by)
        lines = [heading, table, f"Best global model: {best}"]
        if _differ(self.scores):
            lines.append(
                "The sites have scores for different classes. What stands under all is, class by class, over the cases "
                "of the sites that have the class; the means of two sites are not of the same classes."
            )
        return "\n".join(lines)


def read_summary(run: str | Path) -> Summary | None:
    """
    Reads what a run has come to.

    Args:
        run: the run's folder at the server, or a copy of it.

    Returns:
        The summary, ``None`` where the run has left none.
    """
    path = Path(run, SUMMARY_FILE)
    return Summary(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def pool_case_scores(scores: Mapping[str, ClassScores]) -> dict[str, list[float]]:
    """
    Pools the scores of sites, so that each case counts alike and not each site.

    Args:
        scores: the scores of each site, by the site's name.

    Returns:
        For the name of each class the mean Dice over the cases of all sites, and the number of those cases.

    Example:
        >>> pool_case_scores({"site-1": {"liver": [0.9, 3]}, "site-2": {"liver": [0.5, 1]}})
        {'liver': [0.8, 4.0]}
    """
    total: dict[str, list[float]] = {}
    for of_site in scores.values():
        for name, (mean, cases) in of_site.items():
            found = total.setdefault(name, [0.0, 0.0])
            found[0] += mean * cases
            found[1] += cases
    return {name: [found[0] / found[1], found[1]] for name, found in total.items()}


def federation_table(
    class_names: Sequence[str],
    scores: Mapping[str, Mapping[str, ClassScores]],
    taught_by: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """
    Shows the scores of several models as text.

    Args:
        class_names: names of the classes by label value, background first.
        scores: for the name of each model (``before``, ``after``, ``alone``) the scores of each site, by the site's
            name.
        taught_by: for the name of each class the sites with labeled voxels of it.

    Returns:
        A line for each class, one for their mean and one for the number of cases; for all sites together and for each
        site a column for each model. Where not all classes have the same teaching sites, a last column names them.
    """
    sites = list(dict.fromkeys(site for by_site in scores.values() for site in by_site))
    columns = [["class", *class_names[1:], "mean", "cases"]]
    for model, by_site in scores.items():
        columns.append(_column(f"all {model}", class_names, pool_case_scores(by_site)))
    for site in sites:
        columns += [_column(f"{site} {model}", class_names, by_site.get(site, {})) for model, by_site in scores.items()]
    taught = [", ".join((taught_by or {}).get(name, ())) or "none" for name in class_names[1:]]
    if taught_by and len(set(taught)) > 1:
        columns.append(["taught by", *taught, "", ""])
    return "\n".join(text_table(list(zip(*columns))))


def _differ(scores: Mapping[str, Mapping[str, ClassScores]]) -> bool:
    """Whether sites have scores for different classes."""
    return any(len({frozenset(of_site) for of_site in by_site.values()}) > 1 for by_site in scores.values())


def _column(heading: str, class_names: Sequence[str], scores: ClassScores) -> list[str]:
    values = [scores[name][0] if name in scores else math.nan for name in class_names[1:]]
    counted = [value for value in values if not math.isnan(value)]
    mean = sum(counted) / len(counted) if counted else math.nan
    cases = max((int(scores[name][1]) for name in class_names[1:] if name in scores), default=0)
    return [heading, *(number(value, 3) for value in [*values, mean]), str(cases)]
