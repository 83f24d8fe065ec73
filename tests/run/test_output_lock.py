from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dinomix_monai.run import start_run


@pytest.fixture
def other_run(tmp_path: Path, locked_elsewhere: Callable[[Path], subprocess.Popen]) -> Callable[[], subprocess.Popen]:
    """A run of another process in the folder, as far as its log and its lock go."""

    def start() -> subprocess.Popen:
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "training-1.log").write_text("Of the other run.")
        return locked_elsewhere(tmp_path / "logs")

    return start


def test_a_second_run_in_a_folder_ends_before_it_touches_anything(other_run, tmp_path):
    other_run()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    message = r"output_dir must be a folder that no other run writes to, got .*, where one is at work \(.*g-1\.log"
    with pytest.raises(ValueError, match=message):
        start_run(tmp_path, "training")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"} == before


def test_a_run_that_was_killed_leaves_the_folder_to_the_next(other_run, tmp_path):
    process = other_run()
    process.kill()
    process.wait()
    assert start_run(tmp_path, "training").is_file()


def test_the_folder_stays_closed_to_other_processes_while_a_run_goes_on(tmp_path):
    start_run(tmp_path / "a", "training")
    code = "import filelock, sys; filelock.FileLock(sys.argv[1], timeout=0).acquire()"
    command = [sys.executable, "-c", code, str(tmp_path / "a" / "logs" / ".lock")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "could not be acquired" in found.stderr


def test_one_process_may_begin_again_in_the_same_folder(tmp_path):
    start_run(tmp_path, "training")
    start_run(tmp_path, "evaluating")
    assert len(list((tmp_path / "logs").glob("*.log"))) == 2
