"""The page of a report: one HTML file with everything in it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dinomix_monai.metrics import CaseScores

__all__ = ["Picture", "write_page"]


class Picture(NamedTuple):
    """
    A picture of the page.

    Args:
        path: its file, a PNG.
        title: what it shows.
        caption: what to look for in it.
    """

    path: Path
    title: str
    caption: str


def write_page(
    path: Path,
    title: str,
    subtitle: str,
    notes: Sequence[str],
    facts: Mapping[str, Any],
    scores: Sequence[CaseScores],
    comparisons: Sequence[str],
    pictures: Sequence[Picture],
) -> Path:
    """
    Writes a page that needs no other file.

    Args:
        path: file to write.
        title: heading of the page.
        subtitle: what stands under it, such as the data set and the date.
        notes: sentences under the heading.
        facts: what was run, by name. A fact that is ``None`` is left out; one that has facts of its own is shown as
            these, each under both names.
        scores: the scores by each rule, of which the page shows a table; failures are those by the first rule.
        comparisons: sentences on other runs.
        pictures: the page embeds their files.

    Returns:
        ``path``.
    """
    # Imported here, because only an evaluation needs a template engine.
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("dinomix_monai.report"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html").render(
        title=title,
        subtitle=subtitle,
        notes=notes,
        facts=_flattened(facts),
        failures=scores[0].failures(),
        tables=[{"heading": of_rule.heading(), "rows": of_rule.rows()} for of_rule in scores],
        comparisons=comparisons,
        pictures=[{**picture._asdict(), "data": _data_url(picture.path)} for picture in pictures],
    )
    path.write_text(page, encoding="utf-8")
    return path


def _flattened(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flattened: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flattened |= _flattened(value, f"{prefix}{name}: ")
        elif value is not None:
            flattened[f"{prefix}{name}"] = value
    return flattened


def _data_url(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
