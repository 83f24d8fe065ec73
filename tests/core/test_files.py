from __future__ import annotations

import errno
import json

import pytest

from dinomix_monai.core.files import atomic_write, check_writable, set_aside, write_json


@pytest.mark.parametrize("is_shared", [False, True])
def test_what_fails_midway_leaves_the_old_file_and_nothing_else(tmp_path, is_shared):
    path = tmp_path / "new folder" / "a.json"
    write_json(path, {"a": 1}, is_shared)
    with pytest.raises(UnicodeEncodeError), atomic_write(path, is_shared) as file:
        file.writelines(text.encode("ascii") for text in ("half", "\N{BLACK HEART SUIT}"))
    assert json.loads(path.read_text()) == {"a": 1}
    assert [found.name for found in path.parent.iterdir()] == ["a.json"]


def test_the_old_file_is_there_until_the_block_ends(tmp_path):
    path = write_json(tmp_path / "a.json", [1])
    with atomic_write(path) as file:
        file.write(b"[2]")
        file.flush()
        assert json.loads(path.read_text()) == [1]
    assert json.loads(path.read_text()) == [2]


def test_a_full_disk_is_named_with_the_file(tmp_path):
    path = write_json(tmp_path / "a.json", [1])
    message = r"a\.json must be a file that can be written to, got: No space left on device\. What was there before"
    with pytest.raises(OSError, match=message) as caught, atomic_write(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC


def test_a_folder_of_a_read_only_file_system_is_named_before_it_is_needed(tmp_path, monkeypatch):
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []

    def refuse(dir):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(OSError, match=r"labels must be .* \(Read-only file system\)\. Pass another by --labels\."):
        check_writable(tmp_path, "labels")


def test_what_json_does_not_know_is_written_as_text(tmp_path):
    assert json.loads(write_json(tmp_path / "a.json", {"path": tmp_path}).read_text()) == {"path": str(tmp_path)}


def test_a_file_of_an_earlier_run_is_renamed_and_the_log_says_so(tmp_path, caplog):
    path = tmp_path / "model.pt"
    set_aside(path)
    assert caplog.text == ""
    path.write_text("earlier")
    set_aside(path)
    assert [(found.name, found.read_text()) for found in tmp_path.iterdir()] == [("model.previous.pt", "earlier")]
    assert f"{path} was there from an earlier run and is now model.previous.pt." in caplog.text
