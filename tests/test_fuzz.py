"""The first inputs of fuzz.py, which has many more."""

from __future__ import annotations

import random

import pytest

from tests.fuzz import DOORS, sound_folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("door", DOORS)
def test_files_that_are_no_more_sound_are_refused_and_nothing_else(tmp_path, door):
    draw, root = random.Random(0), sound_folder(tmp_path)
    for _ in range(60):
        _, open_it = DOORS[door](draw, root)
        open_it()
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
