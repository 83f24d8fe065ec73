"""``metrics.csv``: a row for each rule, case and class."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dinomix_monai.metrics.case_scores import CaseScores
from dinomix_monai.metrics.score_rules import Outcome, score_rule

__all__ = ["FILE_NAME", "read_scores", "write_scores"]

FILE_NAME = "metrics.csv"
_ROW = ("rule", "grid", "case", "class", "outcome")


def write_scores(folder: str | Path, scores: Sequence[CaseScores]) -> Path:
    """
    Writes the scores by one or several rules.

    Columns after ``rule``, ``grid``, ``case``, ``class`` and ``outcome`` are the metrics of the rules; a field is empty
    where the row's rule has no such metric or leaves the value out.
    """
    path = Path(folder) / FILE_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        columns = [*_ROW, *dict.fromkeys(metric.key for one in scores for metric in one.rule.metrics)]
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for one in scores:
            keys = [metric.key for metric in one.rule.metrics]
            for case, outcomes, values in zip(one.cases, one.outcomes, one.scores):
                for row in zip(one.class_names[1:], outcomes, values.T):
                    numbers = {key: "" if np.isnan(value) else f"{value:.6g}" for key, value in zip(keys, row[2])}
                    writer.writerow(dict(zip(_ROW, (one.rule.name, one.grid, case, *row[:2]))) | numbers)
    return path


def read_scores(folder: str | Path, rule: str) -> CaseScores:
    """
    Reads the scores by one rule.

    Args:
        folder: folder of the file.
        rule: name of the rule.

    Raises:
        FileNotFoundError: When there is no file.
        ValueError: When the file is not one that ``write_scores`` has written, has nothing by this rule, or has a class
            of a case twice or not at all.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"folder must hold {FILE_NAME}, which training and evaluating write, got {folder}, which does not."
        )
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows, columns = list(reader), reader.fieldnames or ()
    if missing := [name for name in _ROW if name not in columns]:
        raise ValueError(f"{path} must have the columns {', '.join(_ROW)}, got none named {', '.join(missing)}.")
    found = list(dict.fromkeys(row["rule"] for row in rows))
    if rule not in found:
        raise ValueError(f"rule must be one by which {path} was scored ({', '.join(found)}), got {rule}.")
    keys = [metric.key for metric in score_rule(rule).metrics]
    rows = [row for row in rows if row["rule"] == rule]
    by_name = {(row["case"], row["class"]): row for row in rows}
    cases, names = (list(dict.fromkeys(row[column] for row in rows)) for column in ("case", "class"))
    if not len(rows) == len(by_name) == len(cases) * len(names):
        raise ValueError(
            f"{path} must have every class of every case once, got {len(rows)} rows for {len(cases)} case names and "
            f"{len(names)} classes. List each case once."
        )
    scores = CaseScores(["background", *names], score_rule(rule), cases, grid=rows[0]["grid"])
    for case in cases:
        entries = [by_name[case, name] for name in names]
        scores.outcomes.append([Outcome(entry["outcome"]) for entry in entries])
        scores.scores.append(np.array([[float(entry[key] or "nan") for entry in entries] for key in keys]))
    return scores
