"""Airflow's real API server with a DAG of one empty task, as a process that may be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx

from tests.serving.served import free_port

AIRFLOW = Path(__file__).resolve().parents[2] / ".venv-airflow" / "bin" / "airflow"
PATIENCE_S = 240
DAG = """
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG

with DAG("retrain", schedule=None, max_active_runs=1):
    EmptyOperator(task_id="nothing")
"""


class RealAirflow:
    """A home with a migrated database and one DAG; the user `bot` has the password `right`."""

    def __init__(self, home: Path, paused: bool = True) -> None:
        """Make the home; nothing is started.

        Args:
            home: an empty folder.
            paused: whether new DAGs are.
        """
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.said = home / "said.log"
        self._server: subprocess.Popen[bytes] | None = None
        (home / "dags").mkdir()
        (home / "dags" / "retrain.py").write_text(DAG)
        (home / "passwords.json").write_text(json.dumps({"bot": "right"}))
        settings = {
            "CORE__DAGS_FOLDER": str(home / "dags"),
            "CORE__LOAD_EXAMPLES": "false",
            "CORE__DAGS_ARE_PAUSED_AT_CREATION": str(paused).lower(),
            "CORE__SIMPLE_AUTH_MANAGER_USERS": "bot:op",
            "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(home / "passwords.json"),
            "API__SECRET_KEY": "s" * 32,
            "API_AUTH__JWT_SECRET": "j" * 64,
            "API__PORT": str(self.port),
            "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}",
            "USAGE_DATA_COLLECTION__ENABLED": "false",
        }
        self._environment = {
            "PATH": f"{AIRFLOW.parent}:/usr/bin:/bin",
            "HOME": str(home),
            "AIRFLOW_HOME": str(home),
            **{f"AIRFLOW__{name}": value for name, value in settings.items()},
        }
        self._run("db", "migrate")
        self._run("dag-processor", "--num-runs", "1")

    def _run(self, *words: str) -> None:
        with self.said.open("ab") as said:
            subprocess.run(
                [str(AIRFLOW), *words],
                env=self._environment,
                check=True,
                stdout=said,
                stderr=said,
                timeout=PATIENCE_S,
            )

    def start(self) -> None:
        """Start the API server; it answers later, see `wait`."""
        with self.said.open("ab") as said:
            self._server = subprocess.Popen(
                [str(AIRFLOW), "api-server", "--port", str(self.port), "--workers", "1"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        end = time.monotonic() + PATIENCE_S
        while True:
            assert self._server is not None and self._server.poll() is None, self.said
            assert time.monotonic() < end, self.said
            with suppress(httpx.HTTPError):
                httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5).raise_for_status()
                return
            time.sleep(0.2)

    def kill(self) -> None:
        """The server and its workers, at once."""
        if self._server is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._server.pid, signal.SIGKILL)
            self._server.wait()


@contextmanager
def airflow(home: Path, paused: bool = True) -> Iterator[RealAirflow]:
    """One that answers."""
    one = RealAirflow(home, paused)
    try:
        one.start()
        one.wait()
        yield one
    finally:
        one.kill()
