"""The relay against the real Airflow: its API server with a DAG of one empty task."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from monitoring.relay import Airflow, MisconfiguredError
from monitoring.store import dag_run_id
from tests.serving.served import free_port

AIRFLOW = Path(__file__).resolve().parents[2] / ".venv-airflow" / "bin" / "airflow"
PATIENCE_S = 240
DAG = """
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

with DAG("retrain", schedule=None, max_active_runs=1):
    EmptyOperator(task_id="nothing")
"""

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not AIRFLOW.exists(), reason="Airflow's environment is not installed"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = tmp_path_factory.mktemp("airflow")
    (home / "dags").mkdir()
    (home / "dags" / "retrain.py").write_text(DAG)
    (home / "passwords.json").write_text(json.dumps({"bot": "right"}))
    port = free_port()
    settings = {
        "CORE__DAGS_FOLDER": str(home / "dags"),
        "CORE__LOAD_EXAMPLES": "false",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": "bot:op",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
        "API__SECRET_KEY": "s" * 32,
        "API_AUTH__JWT_SECRET": "j" * 64,
        "API__PORT": str(port),
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
        "USAGE_DATA_COLLECTION__ENABLED": "false",
    }
    environment = {
        "PATH": f"{AIRFLOW.parent}:/usr/bin:/bin",
        "HOME": str(home),
        "AIRFLOW_HOME": str(home),
        **{f"AIRFLOW__{name}": value for name, value in settings.items()},
    }
    said = (home / "said.log").open("wb")

    def run(*words: str) -> None:
        command = [str(AIRFLOW), *words]
        subprocess.run(
            command, env=environment, check=True, stdout=said, stderr=said, timeout=PATIENCE_S
        )

    run("db", "migrate")
    run("dag-processor", "--num-runs", "1")
    server = subprocess.Popen(
        [str(AIRFLOW), "api-server", "--port", str(port), "--workers", "1"],
        env=environment,
        stdout=said,
        stderr=said,
        start_new_session=True,
    )
    here = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + PATIENCE_S
        while True:
            assert server.poll() is None and time.monotonic() < end, said.name
            try:
                httpx.get(f"{here}/api/v2/monitor/health", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.5)
        yield here
    finally:
        os.killpg(server.pid, signal.SIGINT)
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
        said.close()


def client(url: str, password: str = "right", dag: str = "retrain") -> Airflow:
    return Airflow(url, "bot", password, dag, timeout_s=60)


def test_a_run_is_made_once_and_read_back(url: str):
    airflow = client(url)
    name = dag_run_id("trailwatch", "7", 3)
    conf = {"champion": "7", "reason": ["gap_s"], "request": "abc"}
    assert airflow.run(name) is None
    assert airflow.trigger(name, conf)
    assert not airflow.trigger(name, {**conf, "request": "another"})
    run = airflow.run(name)
    assert run is not None
    assert run["state"] == "queued"
    assert run["conf"]["request"] == "abc"
    airflow.close()


def test_a_new_dag_is_paused_and_takes_runs_without_an_error(url: str):
    airflow = client(url)
    assert airflow.is_paused()
    assert airflow.trigger(dag_run_id("trailwatch", "7", 4), {})
    airflow.close()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"password": "wrong"}, "TRAILWATCH_AIRFLOW_PASSWORD"),
        ({"dag": "nothing"}, "no DAG 'nothing'"),
    ],
    ids=["password", "dag"],
)
def test_what_a_person_must_mend(url: str, asked: dict[str, str], said: str):
    airflow = client(url, **asked)
    with pytest.raises(MisconfiguredError, match=said):
        airflow.is_paused()
    airflow.close()


def test_an_id_that_airflow_does_not_take_is_refused(url: str):
    airflow = client(url)
    with pytest.raises(MisconfiguredError, match=r"4\d\d"):
        airflow.trigger("scheduled__2026-01-01", {})
    with pytest.raises(MisconfiguredError, match=r"4\d\d"):
        airflow.trigger("an id with spaces", {})
    airflow.close()


def test_a_token_that_is_worth_nothing_is_replaced(url: str):
    airflow = client(url)
    airflow._token = "old"
    assert airflow.run("nothing") is None
    assert airflow._token != "old"
    airflow.close()
