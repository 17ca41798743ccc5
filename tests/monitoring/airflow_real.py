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

    def __init__(
        self, home: Path, paused: bool = True, dag: str = DAG, others: tuple[str, ...] = ()
    ) -> None:
        """Make the home; nothing is started.

        Args:
            home: an empty folder.
            paused: whether new DAGs are.
            dag: the file with the DAG `retrain`.
            others: further components to run: "scheduler" for runs to be carried out.
        """
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.said = home / "said.log"
        self._commands = (
            ("api-server", "--port", str(self.port), "--workers", "1"),
            *((name,) for name in others),
        )
        self._processes: list[subprocess.Popen[bytes]] = []
        (home / "dags").mkdir()
        (home / "dags" / "retrain.py").write_text(dag)
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
            "CORE__EXECUTION_API_SERVER_URL": f"{self.url}/execution/",
            "CORE__PARALLELISM": "1",
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
        """Start the API server and the others; it answers later, see `wait`."""
        with self.said.open("ab") as said:
            for words in self._commands:
                process = subprocess.Popen(
                    [str(AIRFLOW), *words],
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                    start_new_session=True,
                )
                self._processes.append(process)

    def wait(self) -> None:
        """Until it answers."""
        end = time.monotonic() + PATIENCE_S
        while True:
            assert all(process.poll() is None for process in self._processes), self.said
            assert time.monotonic() < end, self.said
            with suppress(httpx.HTTPError):
                httpx.get(f"{self.url}/api/v2/monitor/health", timeout=5).raise_for_status()
                return
            time.sleep(0.2)

    def kill(self) -> None:
        """All processes and their workers, at once."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._processes = []


@contextmanager
def airflow(
    home: Path, paused: bool = True, dag: str = DAG, others: tuple[str, ...] = ()
) -> Iterator[RealAirflow]:
    """One that answers; see `RealAirflow`."""
    one = RealAirflow(home, paused, dag, others)
    try:
        one.start()
        one.wait()
        yield one
    finally:
        one.kill()
