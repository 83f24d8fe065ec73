"""The page of a report: one file with everything in it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dinomix_monai.metrics import CaseScores

__all__ = ["write_page"]


def write_page(
    path: Path,
    title: str,
    notes: Sequence[str],
    facts: Mapping[str, Any],
    scores: Sequence[CaseScores],
    comparisons: Sequence[str],
    pictures: Mapping[Path, str],
) -> Path:
    """
    Writes a page that needs no other file.

    Args:
        path: file to write.
        title: its heading.
        notes: sentences under it.
        facts: what was run, by name; ``None`` is left out, and what is nested has both names.
        scores: a table for each rule; failures are those by the first.
        comparisons: sentences on other runs.
        pictures: captions by file, which is embedded.
    """
    # Imported here, because only an evaluation needs it.
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("dinomix_monai.handlers"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("report.html").render(
        title=title,
        notes=notes,
        facts=_flat(facts),
        failures=scores[0].failures(),
        tables=[{"heading": one.heading(), "rows": one.rows()} for one in scores],
        comparisons=comparisons,
        pictures=[{"data": _embedded(file), "caption": caption} for file, caption in pictures.items()],
    )
    path.write_text(page, encoding="utf-8")
    return path


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}: ")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat


def _embedded(picture: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode('ascii')}"
