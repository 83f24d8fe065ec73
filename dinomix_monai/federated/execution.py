"""Runs the federated job in a simulation, as a proof of concept or at real sites, and follows it to its end."""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from nvflare.apis.job_def import JobMetaKey
from nvflare.fuel.flare_api.api_spec import (
    AuthenticationError,
    InternalError,
    NoConnection,
    SessionClosed,
    SessionExpired,
)
from nvflare.fuel.flare_api.flare_api import Session, new_secure_session
from nvflare.recipe import PocEnv, ProdEnv, SimEnv
from nvflare.recipe.run import Run
from nvflare.recipe.spec import ExecEnv, Recipe

from dinomix_monai.federated.server.summary import read_summary
from dinomix_monai.run import check_counts

__all__ = ["make_environment", "run_recipe"]

_OF_THE_SERVER = (AuthenticationError, InternalError, NoConnection, SessionClosed, SessionExpired)
_COMPLETED = "FINISHED:COMPLETED"
_POLL_INTERVAL_S = 5.0
_MOST_ERRORS = 5
_LOGGED_ERROR = re.compile(r" - (?:ERROR|CRITICAL) - (?:\[[^\]]*\] - )?(.*)")


def make_environment(
    env: str, sites: int, workspace: str | Path, threads: int | None = None, startup_kit: str | None = None
) -> ExecEnv:
    """
    Makes NVFlare's environment for a job.

    Args:
        env: ``sim`` for a simulation, ``poc`` for server and sites as processes of this machine, ``prod`` for
            real ones.
        sites: number of sites.
        workspace: folder of a simulation.
        threads: sites that a simulation runs at a time; all by default.
        startup_kit: folder of the startup kit of who submits the job, for ``prod``.

    Raises:
        ValueError: When there is no such environment, ``prod`` has no kit or another one has one.
        FileNotFoundError: When the folder is not the kit of a user.
    """
    check_counts(sites=sites, **({} if threads is None else {"threads": threads}))
    if env not in ("sim", "poc", "prod"):
        raise ValueError(f"env must be sim, poc or prod, got {env!r}.")
    if (env == "prod") != (startup_kit is not None):
        raise ValueError(
            f"startup_kit must be given with --env prod and with no other, got {startup_kit!r} with --env {env}. It is "
            "the folder that `nvflare provision` has made for who submits the job."
        )
    if env == "sim":
        return SimEnv(
            num_clients=sites, num_threads=threads or sites, workspace_root=str(Path(workspace).expanduser().absolute())
        )
    if env == "poc":
        return PocEnv(num_clients=sites)
    assert startup_kit is not None
    kit = Path(startup_kit).expanduser().absolute()
    return ProdEnv(startup_kit_location=str(kit), username=_user_of(kit))


def run_recipe(recipe: Recipe, environment: ExecEnv, workspace: str | Path, detach: bool = False) -> bool:
    """
    Runs a job, waits for its end, and prints the table of what it has come to.

    A run that has written its table has met its terms. NVFlare may still call its job abnormal, such as where a site
    was lost with ``min_responses``; both are printed then.

    Args:
        recipe: the job.
        environment: what :func:`make_environment` has made.
        workspace: folder that the result of a job at a server is downloaded to.
        detach: submit the job to real sites and do not wait.

    Returns:
        Whether the run has come to its end; with ``detach``, whether it is submitted.

    Raises:
        ValueError: When ``detach`` is asked for and there are no real sites.
        RuntimeError: When the job cannot be run or submitted, or the server is lost while the job runs.
    """
    if detach and not isinstance(environment, ProdEnv):
        raise ValueError("detach must go with --env prod, got another: what is on this machine ends with the command.")
    if isinstance(environment, SimEnv):
        return _simulate(recipe, environment)
    try:
        # NVFlare prints that and under which name the job is submitted.
        job_id = _execute(recipe, environment).get_job_id()
        if detach:
            print(f"`nvflare job monitor {job_id}` follows it, `nvflare job download {job_id}` fetches its result.")
            return True
        kit = _kit_of(environment)
        return _follow(kit, _user_of(kit), job_id, Path(workspace).expanduser().absolute())
    finally:
        if isinstance(environment, PocEnv):
            environment.stop()


def _execute(recipe: Recipe, environment: ExecEnv) -> Run:
    try:
        run = recipe.execute(environment)
    except (RuntimeError, *_OF_THE_SERVER) as error:
        raise RuntimeError(f"The job has not run to its end: {error}") from error
    assert run is not None  # an export has ended the process
    return run


def _simulate(recipe: Recipe, environment: SimEnv) -> bool:
    _execute(recipe, environment)
    run = Path(environment.workspace_root, recipe.name, "server", "simulate_job")
    summary = read_summary(run)
    if summary is None or not summary.is_whole:
        print("The run has not come to its end; the log above says why.")
        return False
    print(f"Result: {run}")
    return True


def _follow(kit: Path, user: str, job_id: str, workspace: Path) -> bool:
    try:
        with contextlib.closing(new_secure_session(user, str(kit))) as session:
            _, meta = session.monitor_job_and_return_job_meta(
                job_id, poll_interval=_POLL_INTERVAL_S, cb=_StatusPrinter()
            )
            result = Path(session.download_job_result(job_id, str(workspace)))
    except _OF_THE_SERVER as error:
        raise RuntimeError(
            f"The server no longer answers ({error}). The job may go on: `nvflare job meta {job_id}` asks for it, and "
            f"`nvflare job download {job_id}` fetches its result."
        ) from error
    return _report(meta or {}, result / "workspace")


class _StatusPrinter:
    """Prints each new status of a job."""

    def __init__(self) -> None:
        self._last = ""

    def __call__(self, session: Session, job_id: str, meta: dict[str, Any]) -> bool:
        status = str(meta.get(JobMetaKey.STATUS.value))
        if status != self._last:
            print(f"Job {job_id}: {status}", flush=True)
            self._last = status
        return True


def _report(meta: dict[str, Any], run: Path) -> bool:
    status = str(meta.get(JobMetaKey.STATUS.value))
    summary = read_summary(run)
    is_whole = summary is not None and summary.is_whole
    if summary is not None:
        print(f"\n{summary}")
    if not is_whole:
        print("\nThe run has not come to its end.")
        print("\n".join(_reasons(meta, run)))
    elif status != _COMPLETED:
        print(
            f"\nThe run has come to its end, and its models are good. NVFlare calls the job {status}, as where a site "
            "was lost on the way and has never told how its part ended."
        )
    print(f"Result: {run}", flush=True)
    return is_whole


def _reasons(meta: dict[str, Any], run: Path) -> list[str]:
    """What NVFlare has noted of a job that failed: of its scheduling and deployment, and the server's last errors."""
    deployed = [str(line) for line in meta.get(JobMetaKey.JOB_DEPLOY_DETAIL.value) or []]
    scheduled = [str(line) for line in meta.get(JobMetaKey.SCHEDULE_HISTORY.value) or []]
    log = run / "error_log.txt"
    found = _LOGGED_ERROR.findall(log.read_text(encoding="utf-8", errors="replace") if log.is_file() else "")
    errors = [text.rpartition(", exception: ")[2] for text in found if not text.startswith("Traceback")]
    reasons = [line for line in deployed if not line.endswith(": OK")]
    reasons += [line for line in scheduled[-1:] if not line.endswith(": scheduled")]
    reasons += list(dict.fromkeys(errors))[-_MOST_ERRORS:]
    return reasons or [
        "The server has noted no error, so a site has failed: the log of the job in the folder of its kit says why. "
        "Where a class `is not in allow_list`, `python -m dinomix_monai allow KIT` permits those of a job without code."
    ]


def _kit_of(environment: ExecEnv) -> Path:
    """The startup kit of who submits the job; NVFlare makes that of a proof of concept itself."""
    if isinstance(environment, ProdEnv):
        return Path(environment.startup_kit_location)
    assert isinstance(environment, PocEnv)
    return next(Path(environment.poc_workspace).glob(f"*/prod_00/{environment.username}"))


def _user_of(kit: Path) -> str:
    """The name that a startup kit was made for."""
    file = kit / "startup" / "fed_admin.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["admin"]["username"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FileNotFoundError(
            f"startup_kit must be the kit of a user who submits jobs, got {kit}, whose {file.relative_to(kit)} names "
            "no user. `nvflare provision` makes such a folder for each user of the project."
        ) from error
