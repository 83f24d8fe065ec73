"""A CSV file that a training adds rows to in each epoch."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["EpochTable", "read_table"]


class EpochTable:
    """
    Rows of values, each of an epoch, which stands in the column ``epoch``; a resumed run goes on with its rows.

    Args:
        path: file to write.
        columns: names of the columns, ``epoch`` among them.
    """

    def __init__(self, path: str | Path, columns: Sequence[str]) -> None:
        self.path = Path(path)
        self.columns = columns

    def start(self, epoch: int) -> None:
        """Writes the header and keeps the rows up to an epoch; the run will write those after it again."""
        rows = [row for row in read_table(self.path) if int(row["epoch"]) <= epoch] if self.path.is_file() else []
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns, restval="", extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Adds rows; a column that a row lacks is left empty."""
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerows(rows)


def read_table(path: str | Path) -> list[dict[str, str]]:
    """All rows of a CSV file, each as the texts of its cells by column."""
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
