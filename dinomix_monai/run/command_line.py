"""Commands of the command line: what was typed is looked at before anything runs."""

from __future__ import annotations

import functools
import inspect
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any

import fire

from dinomix_monai.core.text import did_you_mean
from dinomix_monai.run.failure import report_failures

__all__ = ["run_command_line"]

_KINDS = {int: "a whole number", float: "a number", bool: "True or False"}


def run_command_line(component: Callable[..., None] | Mapping[str, Callable[..., None]], name: str) -> None:
    """
    Runs the function that the command line of this process asks for, by Fire, and ends the process if that fails.

    Fire calls a function before it says that it does not know one of the options, and takes ``--help`` for a setting
    where a function takes any. Here both are looked at first, and so is whether numbers are numbers.

    Args:
        component: the function, or the functions by the name of their command.
        name: what the program is called in its help text.

    Raises:
        ValueError: When there is no such command or option, or a value is not what the option takes.
    """
    report_failures()
    typed = sys.argv[1:]
    words = typed[: typed.index("--")] if "--" in typed else typed
    function, command = _function_of(component, words)
    if function is not None:
        if {"--help", "-h"} & set(words):
            typed = [*command, "--", "--help"]
        else:
            _check_options(function, words[len(command) :])
    checked: Any
    if isinstance(component, Mapping):
        checked = {key: _checked(part) for key, part in component.items()}
    else:
        checked = _checked(component)
    fire.Fire(checked, command=typed, name=name)


def _function_of(
    component: Callable[..., None] | Mapping[str, Callable[..., None]], words: Sequence[str]
) -> tuple[Callable[..., None] | None, list[str]]:
    """The function that is asked for, and the words that name it; none where only the commands are asked for."""
    if not isinstance(component, Mapping):
        return component, []
    if not words or words[0].startswith("-"):
        return None, []
    command = words[0].replace("-", "_")
    if command not in component:
        question = did_you_mean(command, component) or f" There are {', '.join(component)}."
        raise ValueError(f"The first word must be a command, got {words[0]}.{question}")
    return component[command], [words[0]]


def _check_options(function: Callable[..., None], words: Sequence[str]) -> None:
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return  # settings of a configuration, which knows them
    for word in words:
        option = word[2:].partition("=")[0].replace("-", "_")
        if word.startswith("--") and option.removeprefix("no") not in parameters and option not in parameters:
            question = did_you_mean(option, parameters) or " --help lists them all."
            raise ValueError(
                f"--{option} must be an option of this command, got a name that it does not have.{question}"
            )


def _checked(function: Callable[..., None]) -> Callable[..., None]:
    """The function with a look at its numbers first."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> None:
        hints = typing.get_type_hints(function)
        for option, value in inspect.signature(function).bind(*args, **kwargs).arguments.items():
            _check_value(option, value, hints.get(option))
        function(*args, **kwargs)

    return call


def _check_value(option: str, value: Any, hint: Any) -> None:
    kinds = set(typing.get_args(hint) or (hint,))
    if not kinds <= {NoneType, *_KINDS} or (value is None and NoneType in kinds):
        return
    kind = next(kind for kind in kinds if kind is not NoneType)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"--{option} must be {_KINDS[kind]}, got {value!r}.")
