from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import pytest
import torch

from dinomix_monai.core.tensor_file import read_tensor_file, write_tensor_file


class Command:
    """An object that runs a command when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


def read(path):
    return read_tensor_file(path, "path", "a file of tensors")


def test_tensors_numbers_and_texts_come_back(tmp_path):
    torch.save({"a": torch.arange(3), "b": [1, {"c": "d"}, None]}, tmp_path / "a.pt")
    found = read(tmp_path / "a.pt")
    assert found["a"].tolist() == [0, 1, 2]
    assert found["b"] == [1, {"c": "d"}, None]


def test_code_in_a_file_is_not_run(tmp_path):
    torch.save({"a": Command(tmp_path / "made")}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"path must be a file of tensors, got .*a.pt, which is damaged.*Unpickling"):
        read(tmp_path / "a.pt")
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "made").exists()


def test_a_packed_file_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(tmp_path / "a.pt", "w") as packed:
        for entry in plain.infolist():
            packed.writestr(entry.filename, plain.read(entry), zipfile.ZIP_DEFLATED)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ValueError, match="which is damaged, incomplete or holds something else"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.pt, which is damaged"):
        read(tmp_path / "a.pt")


def test_a_pickle_that_ends_within_a_number_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02X\x01")
        archive.writestr("archive/version", b"3\n")
    with pytest.raises(ValueError, match=r"a\.pt, which is damaged"):
        read(tmp_path / "a.pt")


def test_half_a_file_is_refused(tmp_path):
    torch.save({"a": torch.zeros(1000)}, tmp_path / "a.pt")
    content = (tmp_path / "a.pt").read_bytes()
    (tmp_path / "a.pt").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"a\.pt, which is damaged"):
        read(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [[1], torch.zeros(1), {1: 2}])
def test_something_else_than_a_dictionary_by_name_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=rf"a\.pt with a {type(content).__name__} of something else"):
        read(tmp_path / "a.pt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"path must be a file of tensors, got .*a.pt, which does not exist"):
        read(tmp_path / "a.pt")


class Interrupted(io.FileIO):
    """A file that Ctrl-C comes upon while the third part of it is written."""

    parts = 0

    def write(self, part):
        self.parts += 1
        if self.parts == 3:
            raise KeyboardInterrupt
        return super().write(part)


def test_ctrl_c_while_a_file_is_written_stays_ctrl_c(tmp_path, monkeypatch):
    write_tensor_file({"a": torch.zeros(3)}, tmp_path / "a.pt")
    monkeypatch.setattr(Path, "open", lambda path, mode: Interrupted(path, mode))
    with pytest.raises(KeyboardInterrupt):
        write_tensor_file({"a": torch.ones(3)}, tmp_path / "a.pt")
    monkeypatch.undo()
    assert read(tmp_path / "a.pt")["a"].tolist() == [0, 0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
