"""
Real sites on one machine, as docs/federation_sites.md has it step by step.

    python benchmarks/federation_sites.py

`nvflare provision` makes the startup kits, server and two sites run as processes that talk by mutual TLS on this
machine alone, and `flare_app/job.py --env prod` submits a job of two toy sites for each line of the table. At the end
the global model of the first job is promoted and segments scans.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import fire
import yaml
from processes import kill_processes
from simulated_federation import write_site_settings
from toys import TOY, make_toy_phantom

from dinomix_monai.data import split_dataset

ROOT = Path(__file__).parents[1]
SETTINGS = {**TOY, "steps_per_epoch": 20, "distillation_weight": 0}
SERVER, SITES, USER = "localhost", ("site-1", "site-2"), "lead@hospital.org"
ROUNDS, EPOCHS_PER_ROUND = 3, 2
# The settings of a server's kit that say where it keeps jobs and results, which by default is one place for all
# servers of a machine.
STORAGES = ("root_dir", "uri_root")


class Consortium:
    """
    A server and two sites with their startup kits.

    Args:
        folder: where everything lies.
        timeout: seconds for a job.
    """

    def __init__(self, folder: Path, timeout: int) -> None:
        self.folder, self.timeout = folder, timeout
        self.data = make_toy_phantom(folder / "data", cases=(2, 2, 2, 2))
        self._lists = split_dataset(self.data, len(SITES))
        self._kits = self._provision()
        self._environment: dict[str, str] = {}

    def kit(self, party: str) -> Path:
        """The startup kit of the server, a site or the user."""
        return self._kits / party

    def start(self, party: str) -> None:
        """Starts the server or a site by the script of its kit."""
        with (self.folder / f"{party}.log").open("a") as log:
            command = ["bash", str(self.kit(party) / "startup" / "start.sh")]
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._variables(), start_new_session=True
            )
            process.wait()

    def kill(self, party: str) -> None:
        """Kills the server or a site whole, with all that runs for it."""
        kill_processes(lambda words: any(str(self.kit(party)) in word for word in words))
        # NVFlare's script would take them for a running one.
        for file in self.kit(party).glob("*.fl"):
            file.unlink()

    @contextmanager
    def running(self, **environment: str) -> Iterator[None]:
        """Server and sites run, with these environment variables."""
        self._environment = environment
        try:
            self.start(SERVER)
            _wait_for(self._is_answering)
            for site in SITES:
                self.start(site)
            yield
        finally:
            for party in (*SITES, SERVER):
                self.kill(party)

    def submit(self, name: str, *options: str, watch: Callable[[Path], None] | None = None) -> tuple[list[str], Path]:
        """
        Submits a job and waits for its end.

        Args:
            name: folder of its own for the sites' states and the result.
            options: of ``job.py``.
            watch: called with the folder of the second site's state while the job runs.

        Returns:
            Exit code, seconds, last status, sites with scores and what the job says of its end; the folder of the run.
        """
        folder = self.folder / name
        folder.mkdir()
        own = [{"folder": str(folder / site)} for site in SITES]
        command = [sys.executable, str(ROOT / "flare_app" / "job.py"), "--env=prod", f"--startup_kit={self.kit(USER)}"]
        command += [f"--sites={len(SITES)}", f"--rounds={ROUNDS}", f"--epochs_per_round={EPOCHS_PER_ROUND}"]
        command += [f"--settings={SETTINGS}", f"--settings_file={write_site_settings(folder, self._lists, own)}"]
        command += ["--compare_alone=False", f"--workspace={folder / 'result'}", *options]
        start = time.time()
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=self._variables())
            try:
                if watch is not None:
                    watch(folder / SITES[1])
                code = str(process.wait(self.timeout))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                code = f"none in {self.timeout} s"
        text = (folder / "log").read_text()
        statuses = re.findall(r"^Job \S+: (\S+)", text, re.MULTILINE)
        run = next((folder / "result").glob("*/workspace"), folder / "none")
        summary = json.loads((run / "summary.json").read_text()) if (run / "summary.json").is_file() else {"scores": {}}
        scored = ", ".join(summary["scores"].get("after", {})) or "none"
        end = next((line for line in text.splitlines() if line.startswith("The run has ")), "the table")
        return [code, f"{time.time() - start:.0f}", (statuses or ["none"])[-1], scored, end.partition(".")[0]], run

    def _provision(self) -> Path:
        _nvflare(self.folder, "provision", "-g")
        project = yaml.safe_load((self.folder / "project.yml").read_text())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        project["participants"] = [
            {"name": SERVER, "type": "server", "org": "hospital", "fed_learn_port": self._port},
            *({"name": site, "type": "client", "org": "hospital"} for site in SITES),
            {"name": USER, "type": "admin", "org": "hospital", "role": "lead"},
        ]
        (self.folder / "project.yml").write_text(yaml.safe_dump(project))
        _nvflare(self.folder, "provision", "-p", "project.yml", "-w", ".")
        kits = self.folder / project["name"] / "prod_00"
        default = kits / SERVER / "local" / "resources.json.default"
        own = {name: f'"{name}": "{self.folder / "storage" / name}"' for name in STORAGES}
        text = re.sub(rf'"({"|".join(STORAGES)})": "/[^"]+"', lambda found: own[found[1]], default.read_text())
        default.write_text(text)
        return kits

    def _is_answering(self) -> bool:
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self._port)) == 0

    def _variables(self) -> dict[str, str]:
        paths = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        code = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        return {**os.environ, "PATH": paths, "PYTHONPATH": code, "OMP_NUM_THREADS": "1", **self._environment}


def main(timeout: int = 1200) -> None:
    """Runs one job after the other, and prints what became of each."""
    print("| job | exit code | seconds | NVFlare's status | sites with scores | the end |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        consortium = Consortium(Path(folder), timeout)

        def report(title: str, name: str, *options: str, watch: Callable[[Path], None] | None = None) -> Path:
            cells, run = consortium.submit(name, *options, watch=watch)
            print(f"| {title} | " + " | ".join(cells) + " |", flush=True)
            return run

        def leave(state: Path) -> None:
            """In the middle of the first round the second site is gone."""
            _wait_for((state / "history.csv").is_file)
            consortium.kill(SITES[1])

        def leave_and_return(state: Path) -> None:
            leave(state)
            consortium.start(SITES[1])

        with consortium.running():
            first = report("with code", "with_code")
            report("without code, not yet allowed", "not_allowed", "--with_code=False")
        for party in (SERVER, *SITES):
            _run(consortium.folder, sys.executable, "-m", "dinomix_monai", "allow", str(consortium.kit(party)))
        enough = ("--min_responses=1", "--grace_period=5")
        with consortium.running():
            report("without code", "allowed", "--with_code=False")
            report("a site is killed in a round and started again", "back", *enough, watch=leave_and_return)
        with consortium.running():
            report("a site is killed in a round and stays away", "lost", *enough, watch=leave)
        wait = {"NVFLARE_CLIENT_OUTCOME_WAIT_TIMEOUT": "30"}
        with consortium.running(**wait):
            report(
                f"the same, {' '.join(f'{name}={value}' for name, value in wait.items())}", "wait", *enough, watch=leave
            )
        print(f"\nPromoted and used: {_segment(consortium, first)} label maps.")


def _segment(consortium: Consortium, run: Path) -> int:
    """Makes the global model the bundle's own, and segments the scans of the phantom with it."""
    bundle = consortium.folder / "bundle"
    shutil.copytree(ROOT / "bundle" / "configs", bundle / "configs")
    train = json.loads((bundle / "configs" / "train.json").read_text())
    toy = bundle / "configs" / "toy.json"
    toy.write_text(json.dumps({"network_def": {**train["network_def"], "n_filters": TOY["network_def#n_filters"]}}))
    configs = [str(bundle / "configs" / "train.json"), str(toy)]
    command = [sys.executable, "-m", "dinomix_monai", "promote", str(run.parent)]
    _run(bundle, *command, f"--model_file={bundle / 'models' / 'model.pt'}", f"--config_file={configs}")
    command = [sys.executable, "-m", "monai.bundle", "run", "inferring", "--config_file", "configs/inference.json"]
    options = {"dataset_dir": str(consortium.data / "images"), "output_dir": str(bundle / "output"), **TOY}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    _run(bundle, *command, *words, "--teacher_weights", "none")
    return len(list((bundle / "output").rglob("*.nii*")))


def _wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.time() + seconds
    while not condition() and time.time() < deadline:
        time.sleep(0.05)


def _nvflare(folder: Path, *words: str) -> None:
    _run(folder, sys.executable, "-m", "nvflare.cli", *words)


def _run(folder: Path, *command: str) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} has ended with {done.returncode}: {done.stdout}{done.stderr}")


if __name__ == "__main__":
    fire.Fire(main)
