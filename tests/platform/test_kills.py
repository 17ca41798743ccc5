"""`kill -9` at random moments of retrainings: they end green, each with one version.

Scheduler, Airflow's worker, the process of a stage, and the MLflow server are killed in an order
and at moments that a seed decides. Meanwhile the service answers, and every version that can be
seen holds the bundle that it was registered with.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from models import bundle, registry
from pipelines.runspace import Places, Run
from tests.deploy.platforms import Platform, states, trigger, until
from tests.pipelines.homes import Home
from tests.platform.homes_up import (
    brought_up,
    by_hand,
    champion,
    tasks,
    troubles,
    unseen,
    versions,
)

pytestmark = pytest.mark.full

PATIENCE_S = 2_400
SEED = 5
LATER_S = 5.0
"""After the start of its task, at most, comes a kill; a short task may have ended by then."""
VICTIMS = ("scheduler", "worker", "stage", "mlflow")
TASKS = (
    *("prepare", "snapshot", "validate", "label", "sequence", "train", "evaluate"),
    *("register", "promote", "publish"),
)
RUNS = {"beset-1": (1, 5), "beset-3": (3, 5)}
"""Epochs, and kills, of each run."""


@pytest.fixture(scope="module")
def up(home: Home) -> Iterator[Platform]:
    with brought_up(home) as made:
        yield made


def victim(up: Platform, kind: str) -> psutil.Process | None:
    """The process to kill, None where there is none at the moment."""
    if kind in ("scheduler", "mlflow"):
        pid = up.known()["airflow-scheduler" if kind == "scheduler" else kind].pid
        try:
            return psutil.Process(pid) if pid else None
        except psutil.NoSuchProcess:
            return None
    commands = [one for one in up.processes() if _works(one)]
    if not commands:
        return None
    # A command may have started the next one: `pipelines.runs`, DVC, the stage itself.
    if kind == "stage":
        return commands[-1]
    outermost = next((one for one in commands if "pipelines.runs" in one.cmdline()), None)
    return outermost.parent() if outermost else None


def _works(process: psutil.Process) -> bool:
    try:
        return any(word.startswith("pipelines.") for word in process.cmdline())
    except psutil.Error:
        return False


class Kills:
    """Kills in tasks, at moments and in an order that a seed decides; each kind as often."""

    def __init__(self) -> None:
        self._chance = random.Random(SEED)
        self._kinds: list[str] = []
        self._plan: list[tuple[str, float]] = []
        self._due: float | None = None
        self.done: list[str] = []

    def plan(self, count: int) -> None:
        """Choose the tasks of a run in which somebody is killed."""
        chosen = set(self._chance.sample(TASKS, count))
        self._plan = [(t, self._chance.uniform(0, LATER_S)) for t in TASKS if t in chosen]

    def maybe(self, up: Platform, airflow: httpx.Client, run: str) -> None:
        """Kill where it is time to."""
        if not self._plan:
            return
        (task, later), state = self._plan[0], tasks(airflow, run)
        if self._due is None and state[task] in ("running", "success"):
            self._due = time.monotonic() + later
        if self._due is None or time.monotonic() < self._due:
            return
        self._kinds = self._kinds or self._chance.sample(VICTIMS, len(VICTIMS))
        found = victim(up, self._kinds[-1])
        if found is not None and _killed(found):
            at = ", ".join(name for name, now in state.items() if now == "running")
            self.done.append(f"{self._kinds.pop()} in {at or f'a pause after {task}'}")
            self._due = None
            del self._plan[0]


def _killed(process: psutil.Process) -> bool:
    """Kill a process; whether it was still there."""
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.NoSuchProcess:
        return False
    return True


class Seen:
    """Versions that could be seen, each with its bundle."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self.digests: dict[str, str] = {}

    def look(self, up: Platform) -> None:
        """Fetch every version that is new; a server that goes away is asked again later."""
        for number, tags in versions(up).items():
            if number not in self.digests:
                version = registry.Version(number, tags[registry.DIGEST_TAG])
                try:
                    _, digest = registry.cached("trailwatch", version, self._cache)
                except bundle.BundleError:
                    raise
                except Exception:  # whatever MLflow's client says of a server that was killed
                    continue
                self.digests[number] = digest


def test_runs_that_are_killed_again_and_again_end_green(home, up, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", up.settings.url("mlflow"))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    data = unseen(home, tmp_path)
    kills, seen = Kills(), Seen(tmp_path / "cache")
    with up.airflow() as airflow, up.serving() as serving:
        until(lambda: airflow.get("/api/v2/dags/retrain").status_code == 200, 180, "the DAG")
        assert serving.post("/score", json={"data": data}).status_code == 200
        total = 0
        for run, (epochs, count) in RUNS.items():
            total += count
            kills.plan(count)
            began = time.monotonic()
            assert trigger(airflow, "retrain", run, force=True, epochs=epochs) == 200
            until(lambda run=run: tasks(airflow, run), 60, "the run has tasks")
            while states(airflow, "retrain")[run] in ("queued", "running"):
                assert time.monotonic() - began < PATIENCE_S, troubles(airflow, run, up)
                kills.maybe(up, airflow, run)
                answer = serving.post("/score", json={"data": data[:1]})
                assert answer.status_code == 200, answer.text
                seen.look(up)
                time.sleep(0.5)
            assert states(airflow, "retrain")[run] == "success", troubles(airflow, run, up)
            print(f"{run}: {time.monotonic() - began:.0f} s, killed so far: {kills.done}")
    assert len(kills.done) == total
    assert {one.split()[0] for one in kills.done} == set(VICTIMS)
    until(lambda: up.command("status").returncode == 0, 180, "everything is well again")
    seen.look(up)
    found = versions(up)
    made_by = [tags.get("dag_run_id") for tags in found.values()]
    assert sorted(filter(None, made_by)) == sorted(RUNS), made_by
    assert seen.digests == {n: tags[registry.DIGEST_TAG] for n, tags in found.items()}
    _demand_no_locks(home, up)


def _demand_no_locks(home: Home, up: Platform) -> None:
    """Nothing that a killed process held is held, in the home, the runs, or the ledger."""
    assert not list(home.folder.rglob("index.lock"))
    for lock in home.folder.rglob("rwlock"):
        assert lock.read_text() == "{}", lock
    places = Places.read({"TRAILWATCH_HOME": str(home.folder)})
    for run in RUNS:
        with Run(run, "retrain", places).alone():
            assert not (up.settings.runs / "retrain" / run / "workspace").exists()
    store = registry.client()
    experiment = store.get_experiment_by_name("trailwatch")
    left = store.search_runs([experiment.experiment_id], "attributes.status = 'RUNNING'")
    assert [run.info.run_name for run in left] == []
    before = champion(up)["version"]
    assert f"not {before}; it took" in by_hand(
        up, "python", "-m", "pipelines.promote", "--rollback", "--why", "test"
    )
