"""Exactly once, with all three killed: the real monitor, the real service and the real Airflow.

Each trial is a model of its own. Its log holds honest days; then the service is asked about goods
of another kind, box after box, while processes are killed. Whoever asks the service asks again
until it answers, as clients do. In the end Airflow has one run of the model, and the log and the
monitor have counted every scan once.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from logbook.opened import open_log
from models.bundle import Bundle
from monitoring.policy import Phase
from monitoring.store import open_store
from tests.models.small_bundles import small_bundle
from tests.monitoring.airflow_real import AIRFLOW, PATIENCE_S, RealAirflow, airflow
from tests.monitoring.new_goods import A_DAY, boxes, log_sales, of_sales
from tests.monitoring.processes import end, settled
from tests.serving.served import free_port

ROOT = Path(__file__).resolve().parents[2]
TRIALS = int(os.environ.get("TRAILWATCH_TRIALS", "100"))
HONEST_DAYS, DAYS = 8, 4
VICTIMS = ("monitor", "serving", "airflow")

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not AIRFLOW.exists(), reason="Airflow's environment is not installed"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose reference knows sales alone; everything else is drift."""
    return of_sales(small_bundle(tmp_path_factory.mktemp("exactly") / "bundle"))


class Trial:
    """One model's log, service and monitor."""

    def __init__(self, home: Path, model: str, bundle: Path, airflow: RealAirflow) -> None:
        home.mkdir(parents=True)
        self.home, self.model, self.airflow = home, model, airflow
        self.state = f"sqlite:{home / 'drift.db'}"
        self.log = f"sqlite:{home / 'log.db'}"
        self.port = free_port()
        settings = {
            "HOME": str(home),
            "MODEL": model,
            "BUNDLE": str(bundle),
            "LOG": self.log,
            "DRIFT": self.state,
            "DRIFT_CLOCK": "event",
            "DRIFT_EVERY_S": "0.1",
            "DRIFT_READ_S": "0.05",
            "DRIFT_LEASE_S": "1",
            "DRIFT_REPORT": "off",
            "AIRFLOW_URL": airflow.url,
            "AIRFLOW_USER": "bot",
            "AIRFLOW_PASSWORD": "right",
            "AIRFLOW_FOLLOW_S": "1",
            "PORT": str(self.port),
            "HISTORY": f"lmdb:{home / 'history'}",
            "EXPLAIN": "lazy",
        }
        self._environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            **{f"TRAILWATCH_{name}": value for name, value in settings.items()},
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        log = open_log(self.log)
        log_sales(log, HONEST_DAYS, "bundle", Bundle(bundle).digest)
        log.close()

    def start(self, name: str) -> None:
        if name == "airflow":
            self.airflow.start()
            return
        module = "monitoring" if name == "monitor" else "serving"
        with (self.home / f"{name}.log").open("ab") as said:
            self.running[name] = subprocess.Popen(
                [sys.executable, "-m", module],
                cwd=self.home,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        if name == "airflow":
            self.airflow.kill()
            return
        process = self.running.pop(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def ask(self, stopped: threading.Event) -> None:
        """Score the days of drift; each request again until it is answered."""
        with httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30) as client:
            for box in boxes(HONEST_DAYS, DAYS):
                while not stopped.is_set():
                    with suppress(httpx.HTTPError):
                        if client.post("/score", json=box).status_code == 200:
                            break
                    time.sleep(0.05)

    def until(self, true: object, what: str) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not true():
            logs = {name: (self.home / f"{name}.log").read_text()[-1500:] for name in self.running}
            assert time.monotonic() < give_up, (what, logs)
            time.sleep(0.1)


@contextmanager
def trial(home: Path, model: str, bundle: Path, airflow: RealAirflow) -> Iterator[Trial]:
    one = Trial(home, model, bundle, airflow)
    try:
        yield one
    finally:
        for name in list(one.running):
            one.kill(name)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealAirflow]:
    with airflow(tmp_path_factory.mktemp("airflow"), paused=False) as one:
        yield one


def test_whoever_is_killed_one_episode_is_one_run(real: RealAirflow, bundle: Path, tmp_path: Path):
    for number in range(TRIALS):
        chance = random.Random(number)
        with trial(tmp_path / str(number), f"model{number}", bundle, real) as one:
            killed = _through(one, chance)
            _holds(one, killed)


def _through(one: Trial, chance: random.Random) -> list[str]:
    """The days of drift, while two processes are killed and start again; who they were."""
    one.start("serving")
    one.start("monitor")
    stopped = threading.Event()
    asking = threading.Thread(target=one.ask, args=(stopped,), daemon=True)
    asking.start()
    try:
        one.until(lambda: _evaluator(one), "the monitor works")
        killed = [chance.choice(VICTIMS) for _ in range(2)]
        for victim in killed:
            time.sleep(chance.uniform(0.0, 2.0))
            one.kill(victim)
            time.sleep(chance.uniform(0.0, 0.5))
            one.start(victim)
        asking.join(PATIENCE_S)
        assert not asking.is_alive()
    finally:
        stopped.set()
    if "airflow" in killed:
        one.airflow.wait()
    one.until(lambda: _done(one), "the request is delivered, and every scan is read")
    time.sleep(1)  # whatever else might be delivered
    assert end(one.running.pop("monitor")) == 0
    return killed


def _evaluator(one: Trial) -> bool:
    said = one.home / "monitor.log"
    return said.exists() and "this is the evaluator" in said.read_text()


def _done(one: Trial) -> bool:
    store = open_store(one.state, one.model)
    try:
        state = store.monitor()
        every = (HONEST_DAYS + DAYS) * A_DAY
        return settled(store) and state is not None and state.counts["counted"] >= every
    finally:
        store.close()


def _holds(one: Trial, killed: list[str]) -> None:
    run = f"drift__{one.model}__vbundle__e1"
    store = open_store(one.state, one.model)
    state = store.monitor()
    assert state is not None
    assert state.counts == {"counted": (HONEST_DAYS + DAYS) * A_DAY}, killed
    assert [asked.dag_run_id for asked in store.requests()] == [run], killed
    kinds = [event.kind for event in store.history(9999)]
    assert [kinds.count(kind) for kind in ("opened", "requested", "delivered")] == [1, 1, 1], killed
    assert state.policy.phase in (Phase.REQUESTED, Phase.TRAINING), killed
    store.close()
    assert _runs(one.airflow, one.model) == [run], killed


def _runs(airflow: RealAirflow, model: str) -> list[str]:
    with httpx.Client(base_url=airflow.url, timeout=60, trust_env=False) as client:
        login = {"username": "bot", "password": "right"}
        token = client.post("/auth/token", json=login).raise_for_status().json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"
        answer = client.get("/api/v2/dags/retrain/dagRuns", params={"limit": 1000})
        found = [run["dag_run_id"] for run in answer.raise_for_status().json()["dag_runs"]]
    return [run for run in found if f"__{model}__" in run]
