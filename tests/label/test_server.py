from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dinomix_monai.label import AppFolder, connections, serve
from dinomix_monai.label.server import server_environment


def test_uploads_and_sessions_stay_in_the_folder_and_the_user_has_the_last_word(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("MONAI_LABEL_SESSION_PATH", raising=False)
    monkeypatch.setenv("MONAI_LABEL_DATASTORE_FILE_EXT", '["*.nrrd"]')
    environment = server_environment(AppFolder(tmp_path))
    assert environment["TMPDIR"] == str(tmp_path / "tmp")
    assert environment["MONAI_LABEL_SESSION_PATH"] == str(tmp_path / "sessions")
    assert json.loads(environment["MONAI_LABEL_DATASTORE_FILE_EXT"]) == ["*.nrrd"]


def test_how_to_connect_names_the_address_of_each_viewer() -> None:
    lines = connections("127.0.0.1", 9000).splitlines()
    for viewer in ("3D Slicer", "OHIF", "REST"):
        assert any(viewer in line and "http://127.0.0.1:9000" in line for line in lines)


def test_other_machines_are_let_in_only_with_authentication(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("MONAI_LABEL_AUTH_ENABLE", raising=False)
    for host in ("0.0.0.0", "192.168.0.7", "scanner.hospital"):
        with pytest.raises(ValueError, match=f"host must be 127.0.0.1 unless MONAI_LABEL_AUTH_ENABLE .* got {host}"):
            serve(AppFolder(tmp_path), str(tmp_path), host)


def test_a_missing_folder_and_a_missing_package_are_named(tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(NotADirectoryError, match=r"studies must be the folder of the scans, got .*nowhere"):
        serve(AppFolder(tmp_path), str(tmp_path / "nowhere"))
    # What it sets for the process of the server is taken back after the test.
    monkeypatch.setattr("os.environ", dict(server_environment(AppFolder(tmp_path))))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setitem(sys.modules, "monailabel.main", None)
    with pytest.raises(ImportError, match=r'pip install "dinomix-monai\[label\]"'):
        serve(AppFolder(tmp_path), str(tmp_path))


def test_a_second_server_of_one_app_is_refused(tmp_path: Path, locked_elsewhere) -> None:
    locked_elsewhere(tmp_path)
    with pytest.raises(ValueError, match=r"app must be a folder that no other server uses, got .*Give this one"):
        serve(AppFolder(tmp_path), str(tmp_path))
