"""
What becomes of a federation when something goes wrong, tried on toys in NVFlare's simulator.

    python benchmarks/federation_faults.py [--faults labels,burst,killed,server]

Sites differ by a settings file of their own, as hospitals do; nothing is built into the package to make it fail. Each
line of the table is a run of two sites.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
from processes import kill_processes
from simulated_federation import simulate, write_site_settings
from toys import TOY, make_toy_phantom

from dinomix_monai.data import split_dataset
from dinomix_monai.federated import read_checkpoint
from dinomix_monai.federated.recipe import build_recipe, client_arguments

SETTINGS = {**TOY, "steps_per_epoch": 3, "distillation_weight": 0}
ROUNDS = 3
MODEL = Path("server", "simulate_job", "app_server", "FL_global_model.pt")


def main(faults: str | tuple[str, ...] = (), timeout: int = 600) -> None:
    """Runs each fault, all by default, and prints what became of it."""
    names = faults.split(",") if isinstance(faults, str) else faults or tuple(FAULTS)
    print("| fault | exit code | seconds | global model | what the log says |\n|---|---|---|---|---|")
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {name} | " + " | ".join(FAULTS[name](Path(folder), timeout)) + " |", flush=True)


def none(folder: Path, timeout: int) -> list[str]:
    """Nothing goes wrong."""
    return _simulate(folder, timeout, {})


def labels(folder: Path, timeout: int) -> list[str]:
    """The second site has two classes in another order."""

    def swap(datalist: dict) -> None:
        names = datalist["labels"]
        names["1"], names["2"] = names["2"], names["1"]

    return _simulate(folder, timeout, {}, edit=swap)


def burst(folder: Path, timeout: int) -> list[str]:
    """The second site has a learning rate at which its weights burst; the norm of updates is bounded."""
    return _simulate(folder, timeout, {"learning_rate": 1e30}, norm_bound=1e3)


def killed(folder: Path, timeout: int) -> list[str]:
    """The process of the second site is killed in its first round; one answer is enough."""

    def kill(_: subprocess.Popen) -> None:
        _wait_for((folder / "site-2" / "history.csv").is_file)
        own = str(folder / "workspace" / "site-2")
        # Of our own run alone: its folder is on the command line.
        kill_processes(lambda words: "--folder" in words and own in words[words.index("--folder") + 1])

    return _simulate(folder, timeout, {}, watch=kill, external=True, min_responses=1, grace_period=60)


def server(folder: Path, timeout: int) -> list[str]:
    """Server and sites are killed in the second round, and the run goes on from the model of the first."""
    model, kept = folder / "workspace" / MODEL, folder / "continued_from.pt"

    def kill(process: subprocess.Popen) -> None:
        _wait_for(lambda: _next_round(model) > 0)
        os.killpg(process.pid, signal.SIGKILL)

    first = _simulate(folder, timeout, {}, watch=kill)
    shutil.move(model, kept)
    shutil.rmtree(folder / "workspace")
    again = _simulate(folder, timeout, {}, start_round=_next_round(kept), initial_ckpt=str(kept))
    return [", ".join(pair) if pair[0] != pair[1] else pair[0] for pair in zip(first, again)]


def _wait_for(condition: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.time() + seconds
    while not condition() and time.time() < deadline:
        time.sleep(0.05)


def _next_round(model: Path) -> int:
    """The round after the one that the global model comes from, 0 while there is none."""
    try:
        return int(read_checkpoint(model)["meta_props"]["next_round"])
    except (FileNotFoundError, EOFError, RuntimeError):  # not there, or not yet whole
        return 0


def _simulate(
    folder: Path,
    timeout: int,
    second: dict[str, Any],
    edit: Callable[[dict], None] | None = None,
    watch: Callable[[subprocess.Popen], None] | None = None,
    start_round: int = 0,
    **options: Any,
) -> list[str]:
    data = make_toy_phantom(folder / "data", cases=(2, 2, 2, 2))
    lists = split_dataset(data, 2)
    if edit is not None:
        content = json.loads(lists[1].read_text())
        edit(content)
        lists[1].write_text(json.dumps(content))
    # What a site keeps lies outside of the workspace, which a simulation begins by clearing.
    own = [{"folder": str(folder / f"site-{number}"), **others} for number, others in enumerate(({}, second), start=1)]
    settings_file = write_site_settings(folder, lists, own)
    recipe = build_recipe(
        num_rounds=ROUNDS - start_round,
        start_round=start_round,
        epochs_per_round=1,
        settings=SETTINGS,
        arguments=client_arguments(settings_file=settings_file),
        compare_alone=False,
        **options,
    )
    start = time.time()
    code, text, _ = simulate(recipe, folder, 2, timeout, watch)
    said = [line.split(" - ")[-1] for line in text.splitlines() if "Handshake:" in line or "refused" in line]
    said += [line.split(" - ")[-1] for line in text.splitlines() if "gnore" in line and "result from" in line]
    rounds = text.count("Global model of round")
    written = f"next would be round {_next_round(folder / 'workspace' / MODEL)}, {rounds} models scored"
    (Path(tempfile.gettempdir()) / "federation_fault.log").write_text(text)
    return [code, f"{time.time() - start:.0f}", written, "<br>".join(dict.fromkeys(said))]


FAULTS = {"none": none, "labels": labels, "burst": burst, "killed": killed, "server": server}

if __name__ == "__main__":
    fire.Fire(main)
