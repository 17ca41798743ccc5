"""The whole platform on this machine: real PostgreSQL, Airflow, MLflow, Valkey and serving."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import textwrap
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from deploy import passwords
from deploy.services import PROJECT, native, services
from deploy.supervisor import State
from tests.deploy.platforms import Platform, platform, running, states, trigger, until

TINY = """
    import os
    from datetime import datetime

    from airflow.sdk import dag, task


    @dag(schedule=None, start_date=datetime(2024, 1, 1), max_active_runs=16)
    def tiny():
        @task(retries=2, retry_delay=1)
        def where():
            return {name: os.environ[name] for name in os.environ if name.startswith(
                ("TRAILWATCH_", "MLFLOW_"))}

        where()


    tiny()
"""


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[Platform, str]]:
    """A platform that is up, and what was printed meanwhile."""
    with platform(TRAILWATCH_HISTORY="server") as made:
        (made.home / "dags" / "tiny.py").write_text(textwrap.dedent(TINY))
        done = made.command("up")
        assert done.returncode == 0, done.stdout + done.stderr
        yield made, done.stdout + done.stderr


@pytest.fixture(scope="module")
def up(started: tuple[Platform, str]) -> Platform:
    return started[0]


@pytest.fixture(scope="module")
def airflow(up: Platform) -> Iterator[httpx.Client]:
    with up.airflow() as client:
        until(lambda: client.get("/api/v2/dags/tiny").status_code == 200, 180, "the DAG is known")
        yield client


def test_every_service_is_healthy_and_shown(started):
    up, printed = started
    names = [service.name for service in services(native(up.settings, up.secrets))]
    shown = up.command("status")
    assert shown.returncode == 0, shown.stdout
    lines = {line.split()[0]: line for line in shown.stdout.splitlines()[1:]}
    assert list(lines) == names
    for name, line in lines.items():
        assert "healthy" in line or "done" in line, line
        assert f"{name} healthy" in printed or f"{name} done" in printed
    for name in ("airflow", "mlflow", "serving"):
        assert up.settings.url(name) in printed
        assert up.settings.url(name) in shown.stdout
    assert str(up.settings.folder / passwords.FILE) in printed


def test_up_again_changes_nothing_and_says_so(up):
    before = {name: one.pid for name, one in up.known().items()}
    done = up.command("up")
    assert done.returncode == 0
    assert "up already" in done.stdout
    assert {name: one.pid for name, one in up.known().items()} == before


def test_everything_listens_on_the_loopback_address_only(up):
    pids = {process.pid for process in up.processes()}
    listening = {
        connection.laddr.ip
        for connection in psutil.net_connections("inet")
        if connection.pid in pids and connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}


def test_secrets_are_in_no_output_command_line_or_log(started):
    up, printed = started
    hidden = {v for name, v in up.secrets.items() if name != "TRAILWATCH_API_KEY_ENTRY"}
    lines = [" ".join(process.cmdline()) for process in up.processes()]
    logs = [path.read_text(errors="replace") for path in up.settings.logs.glob("*.log")]
    assert len(lines) > 15 and len(logs) > 9
    for text in [printed, *lines, *logs, (up.settings.folder / "status.json").read_text()]:
        assert not [secret for secret in hidden if secret in text]


def test_only_the_owner_reads_what_is_secret(up):
    for name in (
        passwords.FILE,
        "airflow/passwords.json",
        "airflow/airflow.cfg",
        "redis.conf",
        PROJECT,
    ):
        mode = stat.S_IMODE((up.settings.folder / name).stat().st_mode)
        assert mode == 0o600, name


def test_serving_answers_to_the_key_only(up):
    scan = {
        "epc_code": "001.8804823.1293291.010004.20250701.000004002",
        "location_id": "101",
        "event_type": "Aggregation",
        "event_time": "2025-07-02T08:30:00Z",
        "event_id": 1,
        "file_id": 1,
    }
    with up.serving() as client:
        answer = client.post("/score", json={"data": [scan]})
        assert answer.status_code == 200, answer.text
        assert client.get("/health").json()["status"] == "ready"
    bare = httpx.post(f"{up.settings.url('serving')}/score", json={"data": [scan]}, trust_env=False)
    assert bare.status_code == 401


def test_twenty_triggers_at_once_are_twenty_runs(up, airflow):
    scheduler = up.pid("airflow-scheduler")
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda i: trigger(airflow, "tiny", f"burst{i}"), range(20)))
    assert Counter(answers) == {200: 20}
    assert trigger(airflow, "tiny", "burst7") == 409

    def all_ended() -> bool:
        return not {"queued", "running"} & set(states(airflow, "tiny").values())

    until(all_ended, 180, "the runs end")
    found = states(airflow, "tiny")
    assert found == {f"burst{i}": "success" for i in range(20)}
    assert up.pid("airflow-scheduler") == scheduler


def test_tasks_are_told_where_the_project_is(up, airflow):
    until(lambda: "burst0" in states(airflow, "tiny"), 60, "the run is known")
    path = "/api/v2/dags/tiny/dagRuns/burst0/taskInstances/where/xcomEntries/return_value"
    answer = airflow.get(path)
    assert answer.status_code == 200, answer.text
    value = answer.json()["value"]
    told = json.loads(value) if isinstance(value, str) else value
    settings = up.settings
    assert told["TRAILWATCH_HOME"] == str(up.home)
    assert told["TRAILWATCH_ML_BIN"] == str(settings.ml_bin)
    assert told["TRAILWATCH_MODEL"] == "trailwatch"
    assert told["TRAILWATCH_DVC_REMOTE"] == str(up.home / "state" / "dvc-remote")
    assert told["TRAILWATCH_RUNS"] == str(up.home / "state" / "runs")
    assert told["MLFLOW_TRACKING_URI"] == settings.url("mlflow")
    for name in ("LOG", "LEDGER", "SWEEPS"):
        assert told[f"TRAILWATCH_{name}"].startswith("postgresql://")
    assert told["TRAILWATCH_SERVING_URL"] == settings.url("serving")


def test_what_is_killed_comes_back(up, airflow):
    killed = {name: up.pid(name) for name in ("airflow-scheduler", "mlflow")}
    workers = psutil.Process(killed["airflow-scheduler"]).children()
    assert workers
    for pid in killed.values():
        os.kill(pid, signal.SIGKILL)

    def back() -> bool:
        known = up.known()
        return all(
            known[name].pid != pid and known[name].state == State.HEALTHY
            for name, pid in killed.items()
        )

    until(back, 240, "the services come back")
    assert not running(workers)
    assert trigger(airflow, "tiny", "afterwards") == 200
    until(lambda: states(airflow, "tiny")["afterwards"] == "success", 180, "the run ends")


def test_down_leaves_nothing_even_of_a_killed_supervisor(up):
    supervisor = json.loads((up.settings.folder / "status.json").read_text())["supervisor"]["pid"]
    processes = up.processes()
    os.kill(supervisor, signal.SIGKILL)
    shown = up.command("status")
    assert shown.returncode != 0
    assert "supervisor is dead" in shown.stdout
    done = up.command("down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not running(processes)
    assert not up.processes()
    for port in up.settings.ports.values():
        with socket.socket() as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(("127.0.0.1", port))
    again = up.command("down")
    assert again.returncode == 0
    assert "not up" in again.stdout


def test_nothing_is_written_outside_the_state_folder(up):
    assert {path.name for path in up.home.iterdir()} <= {"dags", "state"}
    assert shutil.disk_usage(Path(up.home)).free > 0
