from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "dinomix_monai"
FEDERATED = f"{PACKAGE}.federated"


def modules() -> dict[str, Path]:
    files = sorted((ROOT / PACKAGE).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in files]
    return dict(zip(names, files))


def imported_names(text: str, package: str) -> Iterator[str]:
    """Full names of all modules that a source imports, inside of functions too, and of what it takes from them."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*above, *(node.module or "").split(".")]).strip(".")
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


def with_parents(name: str) -> Iterator[str]:
    """Python runs the packages above a module before the module itself."""
    parts = name.split(".")
    yield from (".".join(parts[: length + 1]) for length in range(len(parts)))


MODULES = modules()
IMPORTS = {
    name: set(
        imported_names(file.read_text(encoding="utf-8"), name if file.stem == "__init__" else name.rpartition(".")[0])
    )
    for name, file in MODULES.items()
}


def reached(start: str) -> set[str]:
    """All names that the import of a module imports, directly or through other modules of the package."""
    found, waiting = set(), [*with_parents(start)]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [part for imported in IMPORTS.get(name, ()) for part in with_parents(imported)]
    return found


def room(name: str) -> list[str]:
    return [module for module in MODULES if f"{module}.".startswith(f"{FEDERATED}.{name}.")]


def inside(names: set[str], *parts: str) -> list[str]:
    return sorted(name for name in names if any(f"{name}.".startswith(f"{FEDERATED}.{part}.") for part in parts))


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import a.b", {"a.b"}),
        ("from a import b", {"a", "a.b"}),
        ("def f():\n    from a.b import c as d", {"a.b", "a.b.c"}),
        ("from . import b", {"p.q", "p.q.b"}),
        ("from ..r import s", {"p.r", "p.r.s"}),
    ],
)
def test_imports_of_all_forms_are_found(source, expected):
    assert set(imported_names(source, "p.q")) == expected


@pytest.mark.parametrize(("own", "other"), [("server", "site"), ("site", "server")])
def test_neither_the_server_nor_a_site_imports_the_other_not_even_through_a_third_module(own, other):
    assert len(room(own)) > 4
    for module in room(own):
        assert inside(reached(module), other) == []


def test_what_both_share_imports_neither_of_them():
    assert len(room("protocol")) > 3
    for module in room("protocol"):
        assert inside(reached(module), "server", "site") == []


def test_no_room_imports_what_makes_a_job_or_uses_its_result():
    for module in (*room("protocol"), *room("server"), *room("site")):
        assert inside(IMPORTS[module], "recipe", "promotion") == []


def test_what_leaves_a_site_is_made_in_one_module():
    makers = {"FLModel", "add_scalar", "add_scalars", "log", "log_metric", "log_metrics"}
    found = {}
    for module in room("site"):
        calls = [node.func for node in ast.walk(ast.parse(MODULES[module].read_text())) if isinstance(node, ast.Call)]
        names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", None) for call in calls}
        found[module] = names & makers
    assert {module for module, names in found.items() if names} == {f"{FEDERATED}.site.replies"}


def test_what_the_bundle_names_and_a_promotion_do_without_nvflare():
    for module in (FEDERATED, f"{FEDERATED}.protocol", f"{FEDERATED}.site"):
        assert not [name for name in reached(module) if name.split(".")[0] == "nvflare"]
    assert "nvflare" in reached(f"{FEDERATED}.site.client")
