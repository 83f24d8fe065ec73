"""A federated job in NVFlare's simulator, in a process group of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from nvflare.recipe.spec import Recipe

__all__ = ["simulate", "write_site_settings"]


def write_site_settings(folder: Path, lists: Sequence[Path], own: Sequence[Mapping[str, Any]]) -> str:
    """
    Writes a settings file for each site, which then computes on the CPU and without a pre-trained teacher.

    Args:
        folder: where they are written.
        lists: the datalist of each site, in the folder of the data set.
        own: other settings of each.

    Returns:
        The path of the files, with ``{SITE_NAME}`` for the name of a site.
    """
    for number, (datalist, others) in enumerate(zip(lists, own), start=1):
        data = {"dataset_dir": str(datalist.parent), "datalist#file": datalist.name, "teacher_weights": "none"}
        file = folder / f"site-{number}.json"
        file.write_text(json.dumps({**data, "device": "cpu", "amp": False, **others}))
    return f"{folder}/{{SITE_NAME}}.json"


def simulate(
    recipe: Recipe, folder: Path, sites: int, timeout: int, watch: Callable[[subprocess.Popen], None] | None = None
) -> tuple[str, str, Path]:
    """
    Runs the job with all sites at once, each on its share of the cores, and ends what is left of it after the time.

    Args:
        recipe: the job.
        folder: where the job, the log and the workspace are written.
        sites: number of sites.
        timeout: seconds.
        watch: called with the process, which leads its group, while the job runs.

    Returns:
        The exit code, or that there is none; the log; the folder of the server's results.
    """
    recipe.export(str(folder / "job"))
    workspace = folder / "workspace"
    command = [sys.executable, "-m", "nvflare.cli", "simulator", str(folder / "job" / recipe.name)]
    command += ["-w", str(workspace), "-n", str(sites), "-t", str(sites)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    threads = str(max(1, (os.cpu_count() or 1) // sites))
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": threads},
            # A group of its own, so that nothing of it is left over where it has to be stopped.
            start_new_session=True,
        )
        try:
            if watch is not None:
                watch(process)
            code = str(process.wait(timeout))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            code = f"none in {timeout} s"
    return code, (folder / "log").read_text(), workspace / "server" / "simulate_job"
