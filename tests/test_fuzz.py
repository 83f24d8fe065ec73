"""The first inputs of benchmarks/fuzz.py, which stands for many more."""

from __future__ import annotations

import random
import runpy
from pathlib import Path

import pytest

FUZZ = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "fuzz.py"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("door", FUZZ["DOORS"])
def test_files_that_are_no_more_sound_are_refused_and_nothing_else(tmp_path, door):
    draw, root = random.Random(0), FUZZ["sound_folder"](tmp_path)
    for _ in range(60):
        _, open_it = FUZZ["DOORS"][door](draw, root)
        open_it()
        assert [path.name for path in tmp_path.iterdir()] == ["data"]
