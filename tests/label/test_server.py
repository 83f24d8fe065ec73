from __future__ import annotations

import json
import os
import socket
import sys
import sysconfig
from pathlib import Path

import pytest

from dinomix_monai.label import AppFolder, check_server, connections, serve
from dinomix_monai.label.server import server_environment
from dinomix_monai.run import report_failures


def test_uploads_and_sessions_stay_in_the_folder_and_the_user_has_the_last_word(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.delenv("MONAI_LABEL_SESSION_PATH", raising=False)
    monkeypatch.setenv("MONAI_LABEL_DATASTORE_FILE_EXT", '["*.nrrd"]')
    environment = server_environment(AppFolder(tmp_path))
    assert environment["TMPDIR"] == str(tmp_path / "tmp")
    assert environment["MONAI_LABEL_SESSION_PATH"] == str(tmp_path / "sessions")
    assert environment["MONAI_LABEL_DICOMWEB_CACHE_PATH"] == str(tmp_path / "dicom")
    assert json.loads(environment["MONAI_LABEL_DATASTORE_FILE_EXT"]) == ["*.nrrd"]


def test_how_to_connect_names_the_address_of_each_viewer() -> None:
    lines = connections("127.0.0.1", 9000, "http://pacs/dicom-web").splitlines()
    for viewer in ("3D Slicer", "OHIF", "REST"):
        assert any(viewer in line and "http://127.0.0.1:9000" in line for line in lines)
    # What is in the code of its panel.
    assert any("begins with port 8000: enter http://127.0.0.1:9000/ there" in line for line in lines)
    assert "enter" not in connections("127.0.0.1", 8000, "http://pacs/dicom-web")
    assert "OHIF       not here: it shows scans of a DICOMweb server only" in connections("127.0.0.1", 9000, "scans")


def test_a_dicomweb_server_needs_dcmqi_which_is_found_beside_python(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    with pytest.raises(
        ImportError, match=r"itkimage2segimage was not found\. Install it with `pip install dcmqi`"
    ) as missing:
        check_server("http://127.0.0.1:1/dicom-web")
    report_failures()
    sys.excepthook(missing.type, missing.value, missing.tb)
    assert capsys.readouterr().err == f"Error: {missing.value}\n"
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "itkimage2segimage").touch(mode=0o755)
    with socket.create_server(("127.0.0.1", 0)) as other:
        url = f"http://127.0.0.1:{other.getsockname()[1]}/dicom-web"
        check_server(url)
    with pytest.raises(ValueError, match=rf"studies must be a DICOMweb server that answers, got {url}: Connection ref"):
        check_server(url)
    assert server_environment(AppFolder(tmp_path))["PATH"] == f"/nowhere{os.pathsep}{tmp_path / 'scripts'}"


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
