"""
What ``dinomix_monai.run`` reads of MONAI beyond its interface: names of functions, local variables, the call stack.

Where one of these tests fails, the MONAI that is installed has changed on the inside.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import monai
import pytest
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.transforms import Compose, Lambda

from dinomix_monai.run import configuration, failure

WRITTEN_FOR = "1.6.1"
CONFIG = {"frames": {"_target_": "inspect.stack"}, "initialize": ["@frames"], "run": []}


def changed(what: str, file: str, reader: Callable) -> str:
    """The message of a failing test: what is missing, and where to look."""
    return (
        f"{reader.__module__}.{reader.__name__} was written for MONAI {WRITTEN_FOR}, where {what}. In MONAI "
        f"{monai.__version__}, which is installed, this is not so: look at monai/{file}, and change the function."
    )


def test_monai_resolves_an_item_in_a_function_that_has_its_name_in_a_variable() -> None:
    frames = ConfigParser({"part": [1, CONFIG["frames"]]}).get_parsed_content("part")[1]
    items = [found.frame.f_locals.get(failure._ITEM) for found in frames if found.function == failure._RESOLVER]
    what = f"{failure._RESOLVER} resolves each item of a configuration and has its id in the variable {failure._ITEM!r}"
    assert items == ["part::1", "part"], changed(what, "bundle/reference_resolver.py", failure._place)


def component() -> None:
    ConfigParser({"a": {"_target_": "torch.nn.Linear"}}).get_parsed_content("a")


def expression() -> None:
    ConfigParser({"a": "$1 / 0"}).get_parsed_content("a")


def transform() -> None:
    Compose([Lambda(lambda x: x / 0)])(1)


@pytest.mark.parametrize(
    ("fail", "wrapper", "file"),
    [
        (component, failure._WRAPPERS[0], "utils/module.py"),
        (expression, failure._WRAPPERS[1], "bundle/config_item.py"),
        (transform, failure._WRAPPERS[2], "transforms/transform.py"),
    ],
)
def test_monai_wraps_an_error_in_one_that_begins_with_these_words(fail, wrapper, file) -> None:
    with pytest.raises(RuntimeError) as caught:
        fail()
    is_wrapped = str(caught.value).startswith(wrapper) and caught.value.__cause__ is not None
    what = f"the error of one {fail.__name__} is the cause of an error that begins with {wrapper!r}"
    assert is_wrapped, changed(what, file, failure._unwrapped)


def test_the_parser_is_on_the_call_stack_while_it_makes_a_component() -> None:
    parser = ConfigParser(CONFIG)
    owners = [found.frame.f_locals.get("self") for found in parser.get_parsed_content("frames")]
    what = "a component is made while a method of its ConfigParser runs"
    message = changed(what, "bundle/config_parser.py", configuration.present_parser)
    assert any(owner is parser for owner in owners), message


def test_the_workflow_is_on_the_call_stack_while_it_initializes_and_knows_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "configs" / "a.json"
    file.parent.mkdir()
    file.write_text(json.dumps(CONFIG))
    workflow = ConfigWorkflow(str(file), logging_file=False, workflow_type="train")
    workflow.initialize()
    owners = [found.frame.f_locals.get("self") for found in workflow.parser.get_parsed_content("frames")]
    what = "a component is made while a method of its ConfigWorkflow runs"
    message = changed(what, "bundle/workflows.py", configuration.bundle_root)
    assert any(owner is workflow for owner in owners), message
    what = "a ConfigWorkflow has the folder of its first config file as `config_root_path`"
    message = changed(what, "bundle/workflows.py", configuration.bundle_root)
    assert getattr(workflow, "config_root_path", None) == file.parent, message
