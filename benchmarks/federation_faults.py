"""
What becomes of a federation when something goes wrong, tried on toys in NVFlare's simulator.

    python benchmarks/federation_faults.py [--faults labels,nan,killed]

Sites differ by a settings file of their own, as hospitals do; nothing is built into the package to make it fail. Each
line of the table is a run of two sites.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fire
from simulated_federation import simulate

from dinomix_monai.data import make_phantom, split_dataset
from dinomix_monai.federated.recipe import build_recipe, client_arguments

TOYS = {
    "patch_size": [32, 32, 16],
    "network_def#n_filters": 4,
    "spacing_mm": [8.0, 8.0, 10.0],
    "steps_per_epoch": 3,
    "distillation_weight": 0,
}


def main(faults: str | tuple[str, ...] = ("none", "labels", "nan", "killed"), timeout: int = 600) -> None:
    """Runs each fault and prints what became of it."""
    names = faults.split(",") if isinstance(faults, str) else faults
    print("| fault | exit code | seconds | model of the last round | what the log says |\n|---|---|---|---|---|")
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


def nan(folder: Path, timeout: int) -> list[str]:
    """The second site has a learning rate at which its weights burst."""
    return _simulate(folder, timeout, {"learning_rate": 1e38})


def killed(folder: Path, timeout: int) -> list[str]:
    """The process of the second site is killed in its first round; one answer is enough."""
    options = {"external": True, "min_responses": 1, "grace_period": 60}
    return _simulate(folder, timeout, {}, watch=_kill_in_first_round, **options)


def _simulate(
    folder: Path,
    timeout: int,
    second: dict[str, Any],
    edit: Callable[[dict], None] | None = None,
    watch: Callable[[Path], None] | None = None,
    **options: Any,
) -> list[str]:
    data = make_phantom(folder / "data", cases=(2, 2, 2, 2), size=(40, 40, 28), spacing_mm=(8.0, 8.0, 10.0)).parent
    lists = split_dataset(data, 2)
    if edit is not None:
        content = json.loads(lists[1].read_text())
        edit(content)
        lists[1].write_text(json.dumps(content))
    for number, settings in enumerate(({}, second), start=1):
        own = {"dataset_dir": str(data), "datalist_file": lists[number - 1].name, "teacher_weights": "none"}
        (folder / f"site-{number}.json").write_text(json.dumps({**own, "device": "cpu", "amp": False, **settings}))
    arguments = client_arguments(settings_file=f"{folder}/{{SITE_NAME}}.json")
    recipe = build_recipe(
        num_rounds=3, epochs_per_round=1, settings=TOYS, arguments=arguments, compare_alone=False, **options
    )
    start = time.time()
    code, text, results = simulate(recipe, folder, 2, timeout, watch)
    said = [line.split(" - ")[-1] for line in text.splitlines() if "Handshake:" in line or "refused" in line]
    said += [line.split(" - ")[-1] for line in text.splitlines() if "gnore" in line and "result from" in line]
    model = results / "app_server" / "FL_global_model.pt"
    rounds = text.count("Global model of round")
    written = f"{'there' if model.is_file() else 'none'}, {rounds} models scored"
    (Path(tempfile.gettempdir()) / "federation_fault.log").write_text(text)
    return [code, f"{time.time() - start:.0f}", written, "<br>".join(dict.fromkeys(said))]


def _kill_in_first_round(workspace: Path) -> None:
    """Waits for the history of the site's first round and kills the site's process."""
    history = workspace / "site-2" / "dinomix" / "history.csv"
    deadline = time.time() + 200
    while not history.is_file() and time.time() < deadline:
        time.sleep(0.05)
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_text().split("\0")
        except OSError:
            continue
        # Of our own run alone: its folder is on the command line.
        if "--folder" in words and str(workspace / "site-2") in words[words.index("--folder") + 1]:
            os.kill(int(entry.name), signal.SIGKILL)


FAULTS = {"none": none, "labels": labels, "nan": nan, "killed": killed}

if __name__ == "__main__":
    fire.Fire(main)
