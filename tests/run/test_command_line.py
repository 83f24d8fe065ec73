from __future__ import annotations

import sys
from typing import Any

import pytest

from dinomix_monai.run import run_command_line

ran: list[tuple] = []


def make(folder: str, seed: int = 0, share: float | None = None, is_dry: bool = False) -> None:
    """
    Makes something.

    Args:
        folder: where.
        seed: of it.
        share: of it.
        is_dry: whether not.
    """
    ran.append((folder, seed, share, is_dry))


def plan(folder: str, **settings: Any) -> None:
    """Plans something."""
    ran.append((folder, settings))


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch):
    ran.clear()

    def run(*words: str, component: Any = None) -> list[tuple]:
        monkeypatch.setattr(sys, "argv", ["program", *words])
        run_command_line({"make": make, "plan": plan} if component is None else component, name="program")
        return ran

    return run


def test_a_command_runs_with_what_was_typed(command):
    assert command("make", "a", "--seed=3", "--share", "1", "--is-dry") == [("a", 3, 1, True)]
    assert command("make", "a", "--nois_dry", "--seed", "-1", component=None)[-1] == ("a", -1, None, False)
    assert command("plan", "a", "--anything", "1")[-1] == ("a", {"anything": 1})
    assert command("a", "--seed", "4", component=make)[-1] == ("a", 4, None, False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mak", "a"), r"The first word must be a command, got mak\. Did you mean make\?"),
        (("xyz",), r"The first word must be a command, got xyz\. There are make, plan\."),
        (("make", "a", "--sed", "3"), r"--sed must be an option of this command.* Did you mean seed\?"),
        (("make", "a", "--xyz"), r"--xyz must be an option of this command.* --help lists them all\."),
        (("make", "a", "--seed", "three"), "--seed must be a whole number, got 'three'"),
        (("make", "a", "--seed", "True"), "--seed must be a whole number, got True"),
        (("make", "a", "--seed", "1.5"), r"--seed must be a whole number, got 1\.5"),
        (("make", "a", "--share", "half"), "--share must be a number, got 'half'"),
        (("make", "a", "--is_dry", "3"), "--is_dry must be True or False, got 3"),
    ],
)
def test_what_is_mistyped_is_told_before_anything_runs(command, words, message):
    with pytest.raises(ValueError, match=message):
        command(*words)
    assert ran == []


@pytest.mark.parametrize("words", [("make", "--help"), ("plan", "a", "--help"), ("make", "-h")])
def test_help_shows_the_options_also_of_a_command_that_takes_settings(command, words, capfd):
    with pytest.raises(SystemExit) as end:
        command(*words)
    assert end.value.code == 0
    assert ran == []
    printed = "".join(capfd.readouterr())
    assert words[0] in printed
    assert ("--seed=SEED" in printed) == (words[0] == "make")
