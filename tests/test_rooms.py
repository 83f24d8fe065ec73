"""The packages and modules of ``dinomix_monai`` import one another in the order of CONTRIBUTING's table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dinomix_monai"


def rows_by_room() -> dict[str, int]:
    """The row of each package and module in the table."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `dinomix_monai/(\w+|\{[\w,]+\})[/`.]", text, re.MULTILINE)
    found: dict[str, int] = {}
    for number, row in enumerate(rows):
        for room in row.strip("{}").split(","):
            found.setdefault(room, number)
    return found


def imported_rooms(room: str) -> set[str]:
    found = set()
    for file in [*(PACKAGE / room).rglob("*.py"), *PACKAGE.glob(f"{room}.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            found |= {module.split(".")[1] for module in modules if module.startswith("dinomix_monai.")}
    return found - {room}


ROWS = rows_by_room()


def test_every_package_is_in_the_table() -> None:
    modules = {file.stem for file in PACKAGE.glob("*.py") if not file.stem.startswith("__")}
    assert ROWS.keys() == modules | {file.parent.name for file in PACKAGE.glob("*/__init__.py")}


@pytest.mark.parametrize("room", ROWS)
def test_a_package_imports_only_those_that_stand_above_it(room: str) -> None:
    assert {other for other in imported_rooms(room) if ROWS[other] >= ROWS[room]} == set()
