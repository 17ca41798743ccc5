"""Whole platforms for tests, each in a folder of its own and on free ports."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from deploy import family, passwords
from deploy.platform import Known, read
from deploy.settings import PORTS, Settings

ROOT = Path(__file__).parents[2]
PYTHON = Path(sys.executable)


def free_ports(n: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]


def until(true: Callable[[], object], patience_s: float, what: str) -> None:
    give_up = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < give_up, f"{what} does not come true in {patience_s:.0f} s"
        time.sleep(0.5)


def running(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that run; one that has ended and waits to be told off by init does not."""
    found = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@dataclass(frozen=True)
class Platform:
    """A platform in a project folder.

    Attributes:
        home: the project folder.
        environment: of its commands.
        code: the checkout that runs.
    """

    home: Path
    environment: dict[str, str]
    code: Path = ROOT

    @property
    def settings(self) -> Settings:
        return Settings.read(self.environment)

    @property
    def secrets(self) -> dict[str, str]:
        return passwords.load(self.settings.folder)

    def command(self, name: str, *words: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m deploy`."""
        return subprocess.run(
            [str(PYTHON), "-m", "deploy", name, *words],
            cwd=self.code,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=600,
        )

    def known(self) -> dict[str, Known]:
        return {one.name: one for one in read(self.settings.folder)}

    def pid(self, service: str) -> int:
        found = self.known()[service].pid
        assert found is not None
        return found

    def processes(self) -> list[psutil.Process]:
        """Every process that this platform started, as far as it is marked or in its tree."""
        found = family.marked(str(self.settings.folder))
        return [process for m in family.Table().family(found) if (process := m.process())]

    @contextmanager
    def airflow(self) -> Iterator[httpx.Client]:
        """A client of Airflow's API that has logged in as the bot."""
        url, password = self.settings.url("airflow"), self.secrets["AIRFLOW_BOT_PASSWORD"]
        with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
            answer = client.post("/auth/token", json={"username": "bot", "password": password})
            assert answer.status_code == 201, answer.text
            client.headers["Authorization"] = f"Bearer {answer.json()['access_token']}"
            yield client

    def serving(self) -> httpx.Client:
        """A client of serving with the platform's key."""
        return httpx.Client(
            base_url=self.settings.url("serving"),
            headers={"Authorization": f"Bearer {self.secrets['TRAILWATCH_API_KEY']}"},
            timeout=60,
            trust_env=False,
        )


def trigger(client: httpx.Client, dag: str, run: str, **conf: Any) -> int:
    """Ask for a run; returns the status of the answer."""
    body = {"dag_run_id": run, "logical_date": None, "conf": conf}
    return client.post(f"/api/v2/dags/{dag}/dagRuns", json=body).status_code


def states(client: httpx.Client, dag: str) -> dict[str, str]:
    """State of each run of a DAG."""
    answer = client.get(f"/api/v2/dags/{dag}/dagRuns", params={"limit": 100})
    assert answer.status_code == 200, answer.text
    return {run["dag_run_id"]: run["state"] for run in answer.json()["dag_runs"]}


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a platform: its own ports, nothing of whoever runs the test."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("TRAILWATCH_", "AIRFLOW", "MLFLOW_", "PYTEST_", "PYTHONPATH"))
    }
    ports = zip(PORTS.values(), free_ports(len(PORTS)), strict=True)
    given = {variable: str(port) for (variable, _), port in ports}
    return {**kept, **given, "TRAILWATCH_HOME": str(home), **more}


@contextmanager
def platform(**more: str) -> Iterator[Platform]:
    """A platform in a project folder that is empty but for `dags/`; brought down at the end."""
    home = Path(tempfile.mkdtemp(prefix="trailwatch-"))
    (home / "dags").mkdir()
    made = Platform(home, environment(home, **more))
    try:
        yield made
    finally:
        made.command("down")
        shutil.rmtree(home, ignore_errors=True)
