from __future__ import annotations

import logging
import time

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError

from dinomix_monai.teacher import hub
from dinomix_monai.teacher.hub import hub_file

HUB_ID = "timm/vit_small_patch16_dinov3.lvd1689m"


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


def test_a_cached_file_is_found_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "get_hf_file_metadata", None)  # a call would fail
    repository = tmp_path / "cache" / "models--timm--vit_small_patch16_dinov3.lvd1689m"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    assert hub_file(HUB_ID).read_bytes() == b"weights"


def test_a_file_that_is_not_cached_is_downloaded(tmp_path, monkeypatch):
    def download(hub_id, filename, local_files_only=False):
        if local_files_only:
            raise LocalEntryNotFoundError("not cached")
        return f"{tmp_path}/{hub_id}/{filename}"

    monkeypatch.setattr(hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "get_hf_file_metadata", lambda url, timeout: None)
    assert hub_file(HUB_ID) == tmp_path / HUB_ID / "model.safetensors"


def test_a_refused_connection_is_reported_at_once_and_without_noise(monkeypatch, caplog, capfd):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "hf_hub_url", lambda *args: "http://127.0.0.1:9/model.safetensors")
    start = time.monotonic()
    with (
        caplog.at_level(logging.WARNING, "huggingface_hub"),
        pytest.raises(ConnectionError, match=r"ConnectError|refused"),
    ):
        hub_file(HUB_ID)
    assert time.monotonic() - start < 5
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert capfd.readouterr().err == ""


def test_offline_mode_is_reported(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="OfflineModeIsEnabled"):
        hub_file(HUB_ID)
