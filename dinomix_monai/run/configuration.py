"""The configuration that is running, as it is after overlays and the command line."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dinomix_monai.core.text import did_you_mean

if TYPE_CHECKING:
    from monai.bundle import ConfigParser

__all__ = [
    "bundle_root",
    "check_paths",
    "check_settings",
    "folder_above_configs",
    "output_folder",
    "present_parser",
    "read_configuration",
    "unused_settings",
]

_Owner = TypeVar("_Owner")

_REFERENCE = re.compile(r"[@%](\w+)")
_TEXT_KEY = "_desc_"
# What other programs have, and where it is here.
_NO_SETTINGS = {"dry_run": " `python -m dinomix_monai plan` tells what a training would do, and trains nothing."}
_RESERVED = ("imports", "_meta_", _TEXT_KEY)


def read_configuration(file: str | Path, name: str = "config_file") -> dict[str, Any]:
    """
    Reads one file of settings.

    Args:
        file: JSON or YAML, by its ending.
        name: name of the argument, for the message.

    Raises:
        FileNotFoundError: When there is no such file.
        ValueError: When it is no configuration.
    """
    from monai.bundle import ConfigParser

    if not Path(file).is_file():
        raise FileNotFoundError(
            f"{name} must be a configuration of the bundle, got {file}, which does not exist. Start from the folder "
            "above it, give its absolute path, or make a bundle here by `python -m dinomix_monai bundle`."
        )
    if Path(file).read_bytes()[:2] in (b"\xef\xbb", b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(
            f"{name} must be in UTF-8 without a byte order mark, which MONAI does not take, got {file}. Save it anew."
        )
    try:
        content = ConfigParser.load_config_file(file)
    except ValueError as error:
        raise ValueError(f"{name} must be JSON or YAML, got {file}: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} must have settings by name, got {file} with a {type(content).__name__}.")
    return content


def present_parser() -> ConfigParser | None:
    """
    The parser that is evaluating the caller, or ``None`` when none is.

    MONAI hands a component its own arguments and nothing else of the configuration. The parser is looked for on the
    call stack, so it is the right one however many there are.
    """
    from monai.bundle import ConfigParser

    return _present(ConfigParser)


def bundle_root() -> str:
    """
    The folder of the bundle whose configuration is running, where its outputs go by default.

    It is the folder above ``configs`` that the first config file is in. Where that is unknown, it is ``bundle`` in the
    project's root, and elsewhere the present folder.
    """
    from monai.bundle import ConfigWorkflow

    workflow = _present(ConfigWorkflow)
    return folder_above_configs(workflow.config_root_path if workflow is not None else Path())


def output_folder(
    bundle_root: str | os.PathLike, dataset_dir: str | os.PathLike, phantom_dir: str | os.PathLike | None = None
) -> str:
    """
    Where the outputs of a training go by default: the bundle for the phantom, a folder of its own for other scans.

    That folder becomes a bundle of the model; the one whose configuration runs keeps its configs for others.

    Args:
        bundle_root: the bundle.
        dataset_dir: the scans.
        phantom_dir: folder of the phantom.

    Example:
        >>> output_folder("bundle", "scans/abdomen", "bundle/data/phantom")
        'abdomen_model'
    """
    if str(dataset_dir) == str(phantom_dir):
        return str(bundle_root)
    return f"{Path(dataset_dir).expanduser().resolve().name}_model"


def folder_above_configs(folder: Path) -> str:
    """The bundle of a folder of configs; elsewhere ``bundle`` in the project's root, or the present folder."""
    if folder.name == "configs":
        return str(folder.parent)
    return "bundle" if Path("bundle/configs").is_dir() else "."


def _present(kind: type[_Owner]) -> _Owner | None:
    """The nearest object of a class on the call stack that runs one of its methods."""
    # That MONAI 1.6.1 has it there is an internal of it, which tests/run/test_monai_internals.py looks for.
    frame = inspect.currentframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, kind):
            return owner
        frame = frame.f_back
    return None


def unused_settings(config: Mapping[str, Any]) -> list[str]:
    """
    Plain values at the top of a configuration that nothing refers to, and that therefore do nothing.

    MONAI takes any name on the command line, so that is what a mistyped setting looks like.

    Example:
        >>> unused_settings({"epochs": 3, "epoch": 5, "trainer": {"max_epochs": "@epochs"}})
        ['epoch']
    """
    named = {name for text in _strings(config) for name in _REFERENCE.findall(text)}
    return [name for name, value in config.items() if name not in named and name not in _RESERVED and _is_plain(value)]


def check_settings(config: Mapping[str, Any], typed: Iterable[str]) -> None:
    """
    Makes sure that settings which somebody typed do something.

    Args:
        config: the configuration, with these settings.
        typed: their ids.

    Raises:
        ValueError: When nothing refers to one of them.
    """
    for name in {re.split("#|::", name)[0] for name in typed}.intersection(unused_settings(config)):
        question = _NO_SETTINGS.get(name) or did_you_mean(name, [other for other in config if other != name])
        question = question or " All settings stand at the top of the configuration."
        raise ValueError(
            f"--{name} must be a setting, got a name that nothing in the configuration refers to.{question}"
        )


def check_paths(parser: ConfigParser) -> None:
    """
    Makes sure that paths are paths, and that outputs have a place.

    A command line takes a folder named 2024 for a number, and 2024_01 for another one. The default place of outputs is
    the bundle, and the present folder is no place for them where that is unknown.

    Args:
        parser: the configuration of a run.

    Raises:
        ValueError: When a setting that ends in ``_dir``, ``_file``, ``_root`` or ``folder`` is neither text nor
            ``None``, or there is no bundle in the present folder and no ``output_dir`` is given.
    """
    config = parser.get()
    for name, value in _settings(config):
        if name.endswith(("_dir", "_file", "_root", "folder")) and isinstance(value, (bool, int, float)):
            raise ValueError(
                f"{name} must be a path, got {value}, which the command line takes for a number. Write it with ./ in "
                "front."
            )
    if "@bundle_root" in str(config.get("output_dir")):
        root = Path(parser.get_parsed_content("bundle_root"))
        if not (root / "configs").is_dir():
            raise ValueError(f"output_dir must be given where no bundle is known, got none in {root.absolute()}.")


def _strings(item: Any) -> Iterator[str]:
    if isinstance(item, str):
        yield item
    elif isinstance(item, (Mapping, list, tuple)):
        pairs = item.items() if isinstance(item, Mapping) else enumerate(item)
        for key, value in pairs:
            if key != _TEXT_KEY:
                yield from _strings(value)


def _settings(config: Mapping[str, Any], owner: str = "") -> Iterator[tuple[str, Any]]:
    """Ids and values, those of components too."""
    for name, value in config.items():
        yield owner + name, value
        if isinstance(value, Mapping):
            yield from _settings(value, f"{owner}{name}#")


def _is_plain(value: Any) -> bool:
    # A component, an expression or a macro may be there to be asked for by name, as `run` is.
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float)) or (isinstance(value, str) and value[:1] not in "@$%")
