from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
from nvflare.fuel.flare_api.api_spec import NoConnection
from nvflare.recipe import PocEnv, ProdEnv, SimEnv

from dinomix_monai.federated import execution
from dinomix_monai.federated.execution import make_environment, run_recipe
from dinomix_monai.federated.server.summary import Summary

SUMMARY = Summary(["background", "liver"], 0.5, {"after": {"site-1": {"liver": [0.75, 2]}}}, is_whole=True)


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    (tmp_path / "kit" / "startup").mkdir(parents=True)
    (tmp_path / "kit" / "startup" / "fed_admin.json").write_text('{"admin": {"username": "lead@hospital"}}')
    return tmp_path / "kit"


class FakeRun:
    def get_job_id(self) -> str:
        return "4f1c"


class FakeRecipe:
    name = "dinomix"

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def execute(self, environment: object) -> FakeRun:
        if self.error is not None:
            raise self.error
        return FakeRun()


@pytest.fixture
def served(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable:
    """Runs a job whose server tells these statuses, and whose result has this summary and this log of errors."""

    class FakeSession:
        def __init__(self, username: str, startup_kit_location: str) -> None:
            assert (username, startup_kit_location) == ("lead@hospital", str(kit))

        def monitor_job_and_return_job_meta(self, job_id: str, poll_interval: float, cb: Callable) -> tuple:
            for meta in metas:
                if isinstance(meta, Exception):
                    raise meta
                assert cb(self, job_id, meta)
            return None, metas[-1]

        def download_job_result(self, job_id: str, destination: str) -> str:
            run = Path(destination, job_id, "workspace")
            run.mkdir(parents=True)
            if summary is not None:
                (run / "summary.json").write_text(json.dumps(asdict(summary)))
            (run / "error_log.txt").write_text(errors)
            return str(run.parent)

        def close(self) -> None:
            closed.append(self)

    metas: list = []
    summary: Summary | None = None
    errors = ""
    closed: list = []
    monkeypatch.setattr(execution, "new_secure_session", FakeSession)

    def run(*statuses: object, of: Summary | None = None, log: str = "", **more: object) -> tuple[bool, str]:
        nonlocal summary, errors
        metas[:] = [status if isinstance(status, Exception) else {"status": status, **more} for status in statuses]
        summary, errors = of, log
        environment = make_environment("prod", 2, tmp_path / "ws", startup_kit=str(kit))
        try:
            ended_well = run_recipe(FakeRecipe(), environment, tmp_path / "ws")
        finally:
            assert len(closed) == 1
        return ended_well, capsys.readouterr().out

    return run


def test_a_job_at_real_sites_is_followed_to_its_table(served, tmp_path):
    ended_well, printed = served("SUBMITTED", "RUNNING", "RUNNING", "FINISHED:COMPLETED", of=SUMMARY)
    assert ended_well
    assert printed.splitlines() == [
        "Job 4f1c: SUBMITTED",
        "Job 4f1c: RUNNING",
        "Job 4f1c: FINISHED:COMPLETED",
        "",
        *str(SUMMARY).splitlines(),
        f"Result: {tmp_path / 'ws' / '4f1c' / 'workspace'}",
    ]


def test_a_run_that_has_met_its_terms_has_ended_well_whatever_nvflare_calls_it(served):
    ended_well, printed = served("FINISHED:ABNORMAL", of=SUMMARY)
    assert ended_well
    assert str(SUMMARY) in printed
    assert "The run has come to its end, and its models are good. NVFlare calls the job FINISHED:ABNORMAL" in printed


def test_a_run_that_ended_before_its_trainings_alone_has_not_come_to_its_end(served):
    partial = Summary(SUMMARY.class_names, SUMMARY.best, SUMMARY.scores, is_whole=False)
    ended_well, printed = served("FINISHED:ABORTED", of=partial)
    assert not ended_well
    assert str(partial) in printed
    assert "The run has not come to its end." in printed


LOG = """2026-11-28 04:10:21,581 - JsonScanner - ERROR - Traceback (most recent call last):
  File "job_config.py", line 200
2026-11-28 04:10:21,581 - runner_process - ERROR - FL server: Error in {'a': 1}: path: #1, exception: not in allow_list
2026-11-28 04:10:22,637 - ServerRunner - ERROR - [identity=p, run=4f1c] - Aborting current RUN: Handshake: labels differ
2026-11-28 04:10:23,000 - ServerRunner - WARNING - [identity=p] - nothing
"""


def test_a_job_that_failed_is_told_with_what_the_server_has_noted(served):
    notes = {"job_deploy_detail": ["server: OK", "site-1: no resources"], "schedule_history": ["04:10: scheduled"]}
    ended_well, printed = served("FINISHED:EXECUTION_EXCEPTION", log=LOG, **notes)
    assert not ended_well
    assert printed.splitlines()[2:-1] == [
        "The run has not come to its end.",
        "site-1: no resources",
        "not in allow_list",
        "Aborting current RUN: Handshake: labels differ",
    ]


def test_a_job_that_a_site_has_failed_leads_to_the_log_of_the_site(served):
    ended_well, printed = served("FINISHED:ABNORMAL")
    assert not ended_well
    assert "a site has failed: the log of the job in the folder of its kit says why" in printed


def test_a_server_that_is_lost_is_told_with_what_to_do(served):
    with pytest.raises(RuntimeError, match=r"no longer answers \(gone\).*`nvflare job download 4f1c` fetches"):
        served("RUNNING", NoConnection("gone"))


def test_a_job_that_is_detached_is_not_waited_for(kit, tmp_path, capsys):
    environment = make_environment("prod", 2, tmp_path, startup_kit=str(kit))
    assert run_recipe(FakeRecipe(), environment, tmp_path, detach=True)
    assert "`nvflare job download 4f1c`" in capsys.readouterr().out
    with pytest.raises(ValueError, match="detach must go with --env prod"):
        run_recipe(FakeRecipe(), make_environment("sim", 2, tmp_path), tmp_path, detach=True)


def test_a_job_that_nvflare_does_not_take_is_one_sentence(kit, tmp_path):
    environment = make_environment("prod", 2, tmp_path, startup_kit=str(kit))
    with pytest.raises(RuntimeError, match="The job has not run to its end: no server"):
        run_recipe(FakeRecipe(RuntimeError("no server")), environment, tmp_path)


def test_a_proof_of_concept_is_followed_with_the_kit_that_nvflare_made_and_stopped(
    served, kit, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(PocEnv, "stop", lambda self: print("stopped"))
    environment = make_environment("poc", 2, tmp_path)
    environment.poc_workspace = str(tmp_path / "poc")
    folder = tmp_path / "poc" / "example_project" / "prod_00"
    folder.mkdir(parents=True)
    kit.rename(folder / environment.username)
    seen = []
    monkeypatch.setattr(execution, "_follow", lambda kit, user, job, workspace: seen.append((kit, user, job)) or True)
    assert run_recipe(FakeRecipe(), environment, tmp_path)
    assert seen == [(folder / environment.username, "lead@hospital", "4f1c")]
    with pytest.raises(RuntimeError, match="has not run to its end: no port"):
        run_recipe(FakeRecipe(RuntimeError("no port")), environment, tmp_path)
    assert capsys.readouterr().out == "stopped\n" * 2


def test_a_simulation_that_left_no_table_has_not_come_to_its_end(tmp_path, capsys):
    environment = make_environment("sim", 2, tmp_path)
    assert not run_recipe(FakeRecipe(), environment, tmp_path)
    assert "the log above says why" in capsys.readouterr().out
    run = tmp_path / "dinomix" / "server" / "simulate_job"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(json.dumps(asdict(SUMMARY)))
    assert run_recipe(FakeRecipe(), environment, tmp_path)
    assert capsys.readouterr().out == f"Result: {run}\n"


def test_environments_are_those_of_nvflare(kit, tmp_path):
    sim = make_environment("sim", 3, tmp_path, threads=2)
    assert isinstance(sim, SimEnv)
    assert (sim.num_clients, sim.num_threads, sim.workspace_root) == (3, 2, str(tmp_path))
    assert make_environment("sim", 3, tmp_path).num_threads == 3
    prod = make_environment("prod", 3, tmp_path, startup_kit=str(kit))
    assert isinstance(prod, ProdEnv)
    assert (prod.startup_kit_location, prod.username) == (str(kit), "lead@hospital")


def test_environments_that_cannot_be_are_refused(kit, tmp_path):
    with pytest.raises(ValueError, match="env must be sim, poc or prod, got 'foo'"):
        make_environment("foo", 2, tmp_path)
    with pytest.raises(ValueError, match=r"startup_kit must be given with --env prod .* got None with --env prod"):
        make_environment("prod", 2, tmp_path)
    with pytest.raises(ValueError, match=r"startup_kit must be given with --env prod .* with --env sim"):
        make_environment("sim", 2, tmp_path, startup_kit=str(kit))
    with pytest.raises(ValueError, match="sites must be a whole number >= 1, got 0"):
        make_environment("sim", 0, tmp_path)
    (kit / "startup" / "fed_admin.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"startup_kit must be the kit of a user .* names no user"):
        make_environment("prod", 2, tmp_path, startup_kit=str(kit))
