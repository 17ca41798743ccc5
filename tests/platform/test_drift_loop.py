"""The loop over drift, with real processes: log, monitor, Airflow, MLflow's registry, service.

In CI the training is left out: the challenger is there already, and Airflow's run makes it the
champion. What is left is what nothing else tests together: drift is found in what the real service
logs; the real Airflow is asked over REST, and its scheduler carries the run out; the service swaps;
the monitor takes the new reference, and is healthy. With TRAILWATCH_FULL=1 the whole demo runs,
training and gates included.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from bench.demo import MOST_LATER, NOTICED, Demo, looped
from bench.demo_world import Plan
from logbook.opened import open_log
from models.bundle import Bundle, seal
from serving.settings import Settings
from tests.models.small_bundles import MOVE, registered, small_bundle
from tests.monitoring.airflow_real import AIRFLOW, RealAirflow, airflow
from tests.monitoring.new_goods import boxes, log_sales, of_columns, of_sales
from tests.serving.served import free_port, served

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300
HONEST_DAYS = 8
RUN = "drift__trailwatch__v1__e1"
DAG = """
from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

again = {{"retries": 5, "retry_delay": timedelta(seconds=1)}}  # on a machine that is busy
with DAG("retrain", schedule=None, max_active_runs=1, default_args=again):
    BashOperator(task_id="promote", bash_command={command!r}, env={environment!r})
"""

pytestmark = pytest.mark.skipif(
    not AIRFLOW.exists(), reason="Airflow's environment is not installed"
)


class Loop:
    """A home with a registry, a log, and the processes over them."""

    def __init__(self, home: Path, airflow_url: str) -> None:
        self.home, self.port = home, free_port()
        settings = {
            "HOME": str(home),
            "LOG": f"sqlite:{home / 'log.db'}",
            "DRIFT": f"sqlite:{home / 'drift.db'}",
            "DRIFT_CLOCK": "event",
            "DRIFT_EVERY_S": "0.5",
            "DRIFT_READ_S": "0.2",
            "DRIFT_REPORT": "off",
            "AIRFLOW_URL": airflow_url,
            "AIRFLOW_USER": "bot",
            "AIRFLOW_PASSWORD": "right",
            "AIRFLOW_FOLLOW_S": "1",
            "POLL_S": "0.5",
            "PORT": str(self.port),
            "HISTORY": f"lmdb:{home / 'history'}",
            "EXPLAIN": "lazy",
        }
        dropped = ("TRAILWATCH_", "MLFLOW_")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(dropped)},
            "PYTHONPATH": str(ROOT),
            "MLFLOW_DISABLE_TELEMETRY": "true",
            **{f"TRAILWATCH_{name}": value for name, value in settings.items()},
        }
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=60)

    @contextmanager
    def running(self) -> Iterator[None]:
        started = []
        try:
            for module in ("serving", "monitoring"):
                with (self.home / f"{module}.log").open("ab") as said:
                    started.append(
                        subprocess.Popen(
                            [sys.executable, "-m", module],
                            cwd=self.home,
                            env=self.environment,
                            stdin=subprocess.DEVNULL,
                            stdout=said,
                            stderr=said,
                        )
                    )
            yield
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.wait(30)

    def until(self, true: Any, what: str) -> Any:
        end = time.monotonic() + PATIENCE_S
        while True:
            with suppress(httpx.HTTPError):
                found = true()
                if found:
                    return found
            assert time.monotonic() < end, (what, self.drift(), self.said())
            time.sleep(0.2)

    def drift(self) -> dict[str, Any]:
        return dict(self.client.get("/health/drift").json())

    def judge(self) -> str:
        return str(self.client.get("/health").json()["judge"])

    def score(self, first_day: int, days: int) -> None:
        for body in boxes(first_day, days):
            answer = self.client.post("/score", json=body)
            assert answer.status_code == 200, answer.text

    def said(self) -> str:
        return "\n".join(path.read_text()[-1500:] for path in self.home.glob("*.log"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registry: the champion has seen a shop's sales, the challenger goods as they come."""
    folder = tmp_path_factory.mktemp("loop")
    champion = of_sales(small_bundle(folder / "1" / "bundle"))
    challenger = shutil.copytree(champion, folder / "2" / "bundle")
    (challenger / "provenance.json").write_text('{"weights_digest": "another"}')
    seal(challenger)
    seen = Settings(home=folder / "seen", bundle=str(challenger), history="memory:")
    with served(seen) as (client, _):
        for body in boxes(0, 5):
            assert client.post("/score", json=body).status_code == 200
    log = open_log(seen.log_url)
    told = log.watched(0, 10_000)
    log.close()
    columns = np.frombuffer(b"".join(one.monitored or b"" for one in told), "<f4")
    of_columns(challenger, columns.reshape(len(told), -1).astype(np.float32))
    home = folder / "home"
    registered(home, "trailwatch", champion, challenger)
    log = open_log(f"sqlite:{home / 'log.db'}")
    log_sales(log, HONEST_DAYS, "1", Bundle(champion).digest)
    log.close()
    return home


@pytest.fixture(scope="module")
def real(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealAirflow]:
    """Airflow with a DAG that makes version 2 the champion."""
    move = home / "move.py"
    move.write_text(MOVE)
    dag = DAG.format(
        command=f"{sys.executable} -W ignore {move} trailwatch champion 2",
        environment={
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TRAILWATCH_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "MLFLOW_DISABLE_TELEMETRY": "true",
        },
    )
    with airflow(tmp_path_factory.mktemp("airflow"), False, dag, ("scheduler",)) as one:
        yield one


def test_drift_ends_in_a_new_champion_that_knows_it(home: Path, real: RealAirflow):
    loop = Loop(home, real.url)
    with loop.running():
        loop.until(lambda: loop.judge() == "trailwatch 1", "the champion serves")
        loop.until(lambda: loop.drift()["state"] == "ok", "a shop's sales are as usual")
        loop.score(HONEST_DAYS, 4)
        asked = loop.until(lambda: (loop.drift().get("retrain") or {}).get("dag_run_id"), "drift")
        assert asked == RUN
        loop.until(lambda: loop.judge() == "trailwatch 2", "Airflow's run moves the alias")
        loop.until(lambda: loop.drift()["model_version"] == "2", "the monitor follows")
        loop.score(HONEST_DAYS + 4, 9)
        loop.until(lambda: loop.drift()["state"] == "ok", "the new reference knows such goods")
        # The champion is another one a moment before its run has ended.
        loop.until(lambda: loop.drift()["retrain"]["outcome"] == "success", "the run ends")
        told = loop.drift()
        assert told["max_score"] < 0.7 and told["alarms"] == {}
        closed = loop.client.get("/health/drift/history", params={"kind": "closed"}).json()
        assert [e["facts"] for e in closed["events"]] == [{"episode": 1, "outcome": "promoted"}]
        requested = loop.client.get("/health/drift/history", params={"kind": "requested"}).json()
        assert len(requested["events"]) == 1


@pytest.mark.full
def test_the_demo_closes_the_loop(tmp_path: Path):
    plan = Plan(130, 139, 139 + NOTICED + MOST_LATER + 9, 6.0)
    lines: list[str] = []
    story = looped(Demo(tmp_path / "demo", plan, lines.append), 9, 9)
    assert story.outcome in ("promoted", "rejected"), lines
    assert story.dag_run_id == RUN
    assert story.moments[8].state == "ok"
    if story.outcome == "promoted":
        assert story.moments[-1].version == "2"
        assert story.moments[-1].state in ("ok", "warn")
    assert (tmp_path / "demo" / "timeline.png").stat().st_size > 10_000
