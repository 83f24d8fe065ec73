from __future__ import annotations

import ast
import functools
import inspect
import json
import operator
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import dinomix_monai.__main__ as commands

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "bundle" / "configs"
SITE = ROOT / "docs"
BUNDLE_PAGE = ROOT / "bundle" / "docs" / "README.md"
SETTINGS_PAGE = SITE / "settings.md"
PAGES = {
    page.relative_to(ROOT).as_posix(): page
    for page in (
        *(ROOT / "README.md", ROOT / "CONTRIBUTING.md", BUNDLE_PAGE, ROOT / "flare_app" / "README.md"),
        *sorted(SITE.rglob("*.md")),
    )
}
MOST_LINES = {"README.md": 150, "bundle/docs/README.md": 150}
MOST_COLUMNS = 120

TRAIN = json.loads((CONFIGS / "train.json").read_text(encoding="utf-8"))
OVERLAYS = {
    file.relative_to(CONFIGS).as_posix(): json.loads(file.read_text(encoding="utf-8"))
    for file in sorted(CONFIGS.rglob("*.json"))
    if file.name not in ("train.json", "metadata.json", "inference.json")
}
# Those of MONAI's command line, of torchrun, NVFlare and MONAI Label, which nothing here defines.
OPTIONS_OF_OTHERS = {"aggregation_weights", "args_file", "conf", "config_file", "help", "nproc_per_node"}

each_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


class Parts(NamedTuple):
    """A page: its fences as (language, text), the lines outside of them, and what stands there as inline code."""

    fences: list[tuple[str, str]]
    lines: list[str]
    codes: list[str]

    @property
    def prose(self) -> str:
        """The text without any code."""
        return re.sub(r"`[^`]*`", "", "\n".join(self.lines))

    @property
    def commands(self) -> list[str]:
        """Lines of fences, those that end in a backslash with the next one, and inline code."""
        text = "\n".join(text for _, text in self.fences).replace("\\\n", " ")
        return [*text.split("\n"), *self.codes]


def parts(page: Path) -> Parts:
    fences, lines, fence = [], [], None
    for line in page.read_text(encoding="utf-8").split("\n"):
        if line.strip().startswith("```"):
            if fence is None:
                fence = (line.strip("` "), [])
            else:
                fences.append((fence[0], "\n".join(fence[1])))
                fence = None
        elif fence is None:
            lines.append(line)
        else:
            fence[1].append(line)
    assert fence is None, f"{page} has a fence without an end."
    # A pair of backticks may span the end of a line.
    codes = [re.sub(r"\s+", " ", code) for code in re.findall(r"`([^`]+)`", "\n".join(lines))]
    return Parts(fences, lines, codes)


def headings(page: Path) -> list[str]:
    return [line.lstrip("#").strip() for line in parts(page).lines if re.match(r"#{1,6} ", line)]


def slugs(page: Path, slug: Callable[[str], str], separator: str) -> set[str]:
    found: set[str] = set()
    for heading in headings(page):
        name, number = slug(re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)), 0
        while (numbered := f"{name}{separator}{number}" if number else name) in found:
            number += 1
        found.add(numbered)
    return found


def github_slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def site_slug(heading: str) -> str:
    """As Python-Markdown has it, which MkDocs uses."""
    plain = unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode()
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", plain).strip().lower())


def anchors(page: Path) -> set[str]:
    """A page of the site is read on GitHub, too, so what is linked must have one name in both."""
    on_github = slugs(page, github_slug, "-")
    return on_github & slugs(page, site_slug, "_") if page.is_relative_to(SITE) else on_github


def links(page: Path) -> Iterator[tuple[str, str]]:
    for target in re.findall(r"\]\(([^)\s]+)\)", parts(page).prose):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield path, anchor


def tables(page: Path, head: str) -> Iterator[list[list[str]]]:
    """Rows of the tables whose first column has this head, without the head."""
    rows: list[list[str]] = []
    for line in [*parts(page).lines, ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
        elif rows:
            if rows[0][0] == head:
                yield [rows[0], *rows[2:]]
            rows = []


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def options(words: list[str]) -> list[str]:
    """Names of the options among the words of a command line, such as ``epochs`` of ``--epochs=40``."""
    return [word[2:].split("=")[0] for word in words if re.match(r"--\w", word)]


def words(command: str) -> list[str]:
    """As the shell has it; brackets around what may be left out are no part of a word."""
    return shlex.split(re.sub(r"[\[\]](?=\s|$)|(?<=\s)\[(?=-)", " ", command))


def item(config: dict[str, Any], name: str) -> Any:
    """What stands in a config under an id such as ``token_cache#cell``."""
    return functools.reduce(operator.getitem, re.split("#|::", name), config)


def has_id(config: dict[str, Any], name: str) -> bool:
    """Also of an argument that a component of the config may be given, and is not."""
    owner, _, last = re.sub("::", "#", name).rpartition("#")
    try:
        found = item(config, owner) if owner else config
    except (KeyError, TypeError):
        return False
    return isinstance(found, dict) and (last in found or ("_target_" in found and last in ARGUMENTS))


def arguments_of(*files: Path) -> set[str]:
    """Names of all arguments of all functions in these files."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    functions = [node for tree in trees for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {arg.arg for function in functions for arg in (*function.args.args, *function.args.kwonlyargs)}


ARGUMENTS = arguments_of(*sorted((ROOT / "dinomix_monai").rglob("*.py")))


OPTIONS_OF_PROGRAMS = arguments_of(
    *(ROOT / "dinomix_monai" / "__main__.py", ROOT / "flare_app" / "job.py"),
    # What the job passes on, and what the benchmarks take.
    *(ROOT / "dinomix_monai" / "federated" / f"{name}.py" for name in ("recipe", "server/controller")),
    *sorted((ROOT / "benchmarks").glob("*.py")),
)


def public_names(package: Path) -> set[str]:
    for node in ast.parse((package / "__init__.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def packages() -> set[str]:
    """Rooms and the modules beside them."""
    root = ROOT / "dinomix_monai"
    modules = {file.stem for file in root.glob("*.py") if not file.stem.startswith("__")}
    return modules | {file.parent.name for file in root.glob("*/__init__.py")}


# Links.


@each_page
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for path, anchor in links(page):
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{path} does not exist."
        assert not anchor or anchor in anchors(target), f"{path}#{anchor} is no heading."


@each_page
def test_a_page_of_the_site_links_to_pages_of_the_site(page: Path) -> None:
    if page.is_relative_to(SITE):
        assert all((page.parent / path).resolve().is_relative_to(SITE) for path, _ in links(page) if path)


def test_slugs_are_those_of_github_and_of_the_site() -> None:
    heading = "Precision, `amp` & other_words: 2^31"
    assert github_slug(heading) == "precision-amp--other_words-231"
    assert site_slug(heading) == "precision-amp-other_words-231"


def test_every_page_of_the_site_is_in_its_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    listed = re.findall(r"[\w/]+\.md$", navigation, re.MULTILINE)
    assert sorted(listed) == sorted(page.relative_to(SITE).as_posix() for page in SITE.rglob("*.md"))


def test_every_package_has_a_page_in_the_reference() -> None:
    pages = {page.stem for page in (SITE / "api").glob("*.md")} - {"index"}
    assert pages == packages()
    assert all(f"::: dinomix_monai.{name}\n" in (SITE / "api" / f"{name}.md").read_text() for name in pages)


# Commands.


@each_page
def test_commands_of_the_package_exist_with_their_options(page: Path) -> None:
    for command in parts(page).commands:
        # A command that is a part of a sentence or of another command ends where that goes on.
        if not (found := re.search(r"python -m dinomix_monai (\w+)(.*)", command)):
            continue
        assert found[1] in commands.__all__, f"There is no command {found[1]}."
        parameters = inspect.signature(getattr(commands, found[1])).parameters
        for name in options(words(found[2])):
            is_known = name in {"help", *parameters} or ("settings" in parameters and has_id(TRAIN, name))
            assert is_known, f"{command} has the option --{name}, which {found[1]} lacks."


def test_every_command_of_the_package_is_in_the_list_of_commands() -> None:
    [_, table] = tables(SITE / "commands.md", "command")
    assert sorted(spans(row[0])[0] for row in table[1:]) == sorted(commands.__all__)


@each_page
def test_settings_in_commands_of_the_bundle_are_ids_of_its_configs(page: Path) -> None:
    for command in parts(page).commands:
        if "monai.bundle run " not in command:
            continue
        # The bundle of a training, OUT, has configs of the same names.
        files = re.findall(r"(?:bundle|OUT)/configs/[\w/]+\.json", command)
        assert files, f"{command} names no config."
        paths = [CONFIGS / file.partition("configs/")[2] for file in files]
        configs = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
        for name in set(options(words(command))) - OPTIONS_OF_OTHERS:
            assert any(has_id(config, name) for config in configs), f"--{name} is no id of {files}."


@each_page
def test_options_are_those_of_some_command(page: Path) -> None:
    known = OPTIONS_OF_OTHERS | OPTIONS_OF_PROGRAMS
    for code in parts(page).codes:
        if not re.match(r"'?--\w", code):
            continue
        for name in options(words(code)):
            is_id = any(has_id(config, name) for config in (TRAIN, *OVERLAYS.values()))
            assert is_id or name in known, f"--{name} is an option of nothing."


# Files and names.


@each_page
def test_files_of_the_repository_exist(page: Path) -> None:
    """Configs, benchmarks and tests, by their path from the root of the project or of the bundle."""
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/.-])(?:bundle/configs|benchmarks|tests|flare_app)/[\w/.*-]*\w", text):
        assert list(ROOT.glob(path)), f"{path} does not exist."
    for path in re.findall(r"(?<![\w/.-])(?:configs/)?((?:baseline|ablation)/[\w*]+\.json)", text):
        assert list(CONFIGS.glob(path)), f"{path} does not exist."
    for path in re.findall(r"(?<![\w/.-])configs/[\w/*]+\.json", text):
        assert list(CONFIGS.parent.glob(path)), f"{path} does not exist."


@each_page
def test_names_that_are_imported_are_public(page: Path) -> None:
    code = "\n".join(text for language, text in parts(page).fences if language == "python")
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("dinomix_monai."):
            names = {alias.name for alias in node.names}
            assert names <= public_names(ROOT / node.module.replace(".", "/")), f"{names} are not in {node.module}."


# Settings.


def test_settings_in_the_tables_are_ids_of_the_configs() -> None:
    for head, *rows in tables(SETTINGS_PAGE, "setting"):
        for row in rows:
            configs = [OVERLAYS[name] for name in spans(row[1])] if "overlay" in head else [TRAIN]
            for name in spans(row[0]):
                assert all(has_id(config, name) for config in configs), f"{name} is no id."


def test_every_setting_is_in_a_table() -> None:
    # They stand first; the data list is the first that is built from them.
    settings = list(TRAIN)[: list(TRAIN).index("datalist")]
    listed = {name for _, *rows in tables(SETTINGS_PAGE, "setting") for row in rows for name in spans(row[0])}
    assert set(settings) - {"_desc_", "imports"} <= listed


def test_defaults_in_the_tables_are_those_of_the_configs() -> None:
    compared = 0
    for head, *rows in tables(SETTINGS_PAGE, "setting"):
        for row in rows:
            config = OVERLAYS[spans(row[1])[0]] if "overlay" in head else TRAIN
            for name, default in zip(spans(row[0]), spans(row[head.index("default")]), strict=False):
                try:
                    value = json.loads(default)
                except ValueError:  # said in words
                    continue
                found = item(config, name)
                if isinstance(found, str) and (planned := re.match(r"\$@plan\('(\w+)'", found)):
                    # A planned setting: its default is that of the phantom.
                    found = item(TRAIN, "plan")["phantom"][planned[1]]
                assert value == found, f"{name} is {found} by default."
                compared += 1
    assert compared > 30


def test_every_overlay_is_in_the_table() -> None:
    [[_, *rows]] = tables(SETTINGS_PAGE, "file")
    listed = {
        file.relative_to(CONFIGS).as_posix() for row in rows for name in spans(row[0]) for file in CONFIGS.glob(name)
    }
    assert listed == OVERLAYS.keys()


# Form.


@each_page
def test_lines_are_wrapped(page: Path) -> None:
    for line in parts(page).lines:
        length = len(re.sub(r"\(https?:[^)]*\)|<https?:[^>]*>", "", line))
        assert line.startswith("|") or length <= MOST_COLUMNS, f"This line has {length} columns: {line}"


@pytest.mark.parametrize(("name", "most"), MOST_LINES.items())
def test_short_pages_stay_short(name: str, most: int) -> None:
    assert len(PAGES[name].read_text(encoding="utf-8").splitlines()) <= most
