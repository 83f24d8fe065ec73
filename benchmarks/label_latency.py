"""
How long an annotator waits, and what memory it takes: the real server on a scan of 512 x 512 x 300 voxels.

    python benchmarks/label_latency.py

Prints the time from the start of the command to the first segmentation (a scan of 80 x 80 x 56 voxels), then time and
peak memory of the large scan; beside each time the CPU seconds of the server, which other programs do not change much.
The scan is smooth noise and the weights are random: neither matters for the time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request, urlopen

import fire
import nibabel as nib
import numpy as np
import torch
from psutil import Process
from scipy.ndimage import zoom

ROOT = Path(__file__).parents[1]
SIZE = (512, 512, 300)
SPACING_MM = (0.75, 0.75, 1.5)


def main(port: int = 8123, repeats: int = 2) -> None:
    sys.path.insert(0, str(ROOT))
    from dinomix_monai.data import make_phantom
    from dinomix_monai.label import prepare_app_folder

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        studies = root / "studies"
        studies.mkdir()
        phantom = make_phantom(root / "phantom", cases=(1, 0, 0, 0)).parent
        (phantom / "images" / "phantom_001.nii").rename(studies / "small.nii")
        noise = np.random.default_rng(0).normal(40, 120, (32, 32, 20))
        large = zoom(noise, np.divide(SIZE, noise.shape), order=1).astype(np.int16)
        nib.save(
            nib.Nifti1Image(large, np.diag([-SPACING_MM[0], -SPACING_MM[1], SPACING_MM[2], 1])),
            studies / "large.nii.gz",
        )
        folder = prepare_app_folder(root / "app", ROOT / "bundle")
        network = folder.bundle.parser("inference").get_parsed_content("network_def")
        torch.save(network.state_dict(), folder.model_file)
        command = [sys.executable, "-m", "dinomix_monai", "label", "--studies", str(studies), "--app", str(folder.root)]
        command += ["--bundle", str(ROOT / "bundle"), "--port", str(port)]
        start = time.perf_counter()
        with (root / "log.txt").open("w") as log:
            environment = {**os.environ, "PYTHONPATH": str(ROOT)}
            server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment)
        try:
            _wait_for(port, server)
            _segment(port, "small")
            print(f"start to first segmentation: {_cost(server, start, 0)}")
            for _ in range(repeats):
                start, cpu = time.perf_counter(), _cpu_seconds(server)
                _segment(port, "large")
                print(f"{' x '.join(map(str, SIZE))}: {_cost(server, start, cpu)}", flush=True)
            for line in (root / "log.txt").read_text().splitlines():
                if "Latencies" in line:
                    print(line.partition("++ ")[2])
        finally:
            server.terminate()
            server.wait()


def _segment(port: int, name: str) -> None:
    request = Request(f"http://127.0.0.1:{port}/infer/dinomix?image={name}&output=image", method="POST")
    with urlopen(request, timeout=600) as answer:
        answer.read()


def _wait_for(port: int, server: subprocess.Popen) -> None:
    while server.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/info/", timeout=60).close()
            return
        except URLError:
            time.sleep(0.2)
    raise RuntimeError("The server must start, but it ended.")


def _cost(server: subprocess.Popen, start: float, cpu: float) -> str:
    # The largest resident memory of the process so far (Linux).
    status = Path(f"/proc/{server.pid}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 2**20
    return f"{time.perf_counter() - start:.1f} s, {_cpu_seconds(server) - cpu:.1f} s of CPU, peak {peak:.2f} GB"


def _cpu_seconds(server: subprocess.Popen) -> float:
    times = Process(server.pid).cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    fire.Fire(main)
