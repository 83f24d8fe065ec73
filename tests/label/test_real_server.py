"""The real server as a process, and MONAI Label's own client."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
from monailabel.client import MONAILabelClient

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait(until, seconds: float, what: str):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = until()
        if found:
            return found
        time.sleep(0.5)
    raise AssertionError(f"{what} took more than {seconds} s")


@pytest.fixture
def server(make_folder, give_model, studies: Path, tmp_path: Path) -> Iterator[tuple[str, psutil.Process, Path]]:
    folder = make_folder()
    give_model(folder)
    port = free_port()
    log = tmp_path / "log.txt"
    # Out of the way of what other tests have set for this process.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MONAI_LABEL")}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "-m", "dinomix_monai", "label", "--studies", str(studies), "--app", str(folder.root)]
    with log.open("w") as file:
        process = subprocess.Popen(
            [*command, "--bundle", str(ROOT / "bundle"), "--port", str(port)],
            stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=tmp_path,
        )  # fmt: skip
    yield f"http://127.0.0.1:{port}", psutil.Process(process.pid), log
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) in (0, -signal.SIGTERM)


@pytest.mark.slow
def test_an_annotator_and_the_real_server(server, studies: Path, phantom: Path, tmp_path: Path) -> None:
    address, process, log = server
    client = MONAILabelClient(address, tmpdir=str(tmp_path))

    def info() -> dict | None:
        try:
            return client.info()
        except OSError:
            assert process.status() != psutil.STATUS_ZOMBIE, log.read_text()
            return None

    assert wait(info, 240, "the start")["name"] == "DINO-Mix"
    file, params = client.infer("dinomix", "case_1", {})
    # Seconds of CPU and not of the clock, which others on the machine share.
    times = process.cpu_times()
    assert times.user + times.system < 40
    image, label = nib.load(studies / "case_1.nii"), nib.load(file)
    assert label.shape == image.shape
    np.testing.assert_array_equal(label.affine, image.affine)
    before = np.array(label.dataobj)
    assert list(params["label_colors"]) == list(params["label_names"])

    client.save_label("case_1", str(phantom / "labels" / "phantom_001.nii"), tag="final", params={})
    assert client.info()["datastore"]["completed"] == 1
    client.train_start("dinomix", {"max_epochs": 2, "device": "cpu"})
    done = wait(
        lambda: (status := client.train_status())["status"] not in ("SUBMITTED", "RUNNING") and status, 300, "training"
    )
    assert done["status"] == "DONE", log.read_text()
    # The progress line of each epoch, as it could be followed meanwhile.
    assert any("epoch 2/2" in line and "loss=" in line for line in done["details"])
    assert client.info()["train_stats"]["dinomix"]["result"]["replaced"]

    after = np.asarray(nib.load(client.infer("dinomix", "case_1", {})[0]).dataobj)
    assert not np.array_equal(before, after)

    chosen = client.next_sample("dinomix", {})
    assert chosen["id"] in ("case_2", "case_3")
    assert chosen["looked_at"] == chosen["scans"]

    text = log.read_text()
    assert "3D Slicer" in text
    # A page of another origin may not read answers, and the server's own may.
    origins = {"http://evil.example": None, address: address}
    for origin, allowed in origins.items():
        answer = requests.get(f"{address}/info/", headers={"Origin": origin}, timeout=60)
        assert answer.headers.get("access-control-allow-origin") == allowed
    connections = [one for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
    assert [one.laddr.ip for one in connections] == ["127.0.0.1"]
