"""The closed loop, for a person to watch: `make demo`.

A small project of its own is made and trained in `state/demo`, the platform is brought up over it,
and a simulated world is replayed into the service, a day in a second or two. Then a new factory
opens and every dwell takes twice as long. `/health/drift` tells of it, an analyst confirms scans of
the new factory, the monitor asks Airflow for a training, the gates judge the challenger, serving
takes it, and the monitor watches against the new reference. Nothing is stood in for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np
import pyarrow as pa

from bench import demo_world
from bench.demo_picture import drawn
from bench.demo_world import Plan
from intake.master import read_sites
from intake.read import read_scans
from pipelines import params
from serving.history.opened import open_history
from serving.sites import SiteBook
from trail.scan import DAY_US

ROOT: Final = Path(__file__).resolve().parents[1]
PATIENCE_S: Final = 1200.0
"""For a training; two minutes on two idle cores."""
NOTICED: Final = 4
"""Days after the change on which an analyst looks at the new factory."""
MOST_LATER: Final = 12
"""Days after that in which a retraining has to be asked for."""
CONFIRMED: Final = 12
"""Scans that the analyst looks at; ten are asked for."""
MOST_SCANS: Final = 1_000
FIRST_EVENT: Final = 100_000_000
"""Event ids of what comes through the service begin here."""
PORTS: Final = ("", "_MONITOR", "_AIRFLOW", "_MLFLOW", "_POSTGRES", "_REDIS")
SETTINGS: Final[dict[str, Any]] = {
    "train.hidden": 24,
    "train.epochs": 3,
    "train.gbm.trees": 15,
    "train.gbm.threads": 1,
    "train.svm.scans": 2000,
    "train.svm.components": 40,
    "train.drift.replicates": 60,
    "evaluate.bootstrap": 50,
    "evaluate.explained": 3,
    # The gates are the product's; how much a model of a minute's training may lose is not.
    "promote.bootstrap": 50,
    "promote.least_lots": 4,
    "promote.margins": {"map": 0.5, "f_beta": 0.5},
    "promote.floors": dict.fromkeys(("epcFake", "epcDup", "locErr", "evtOrderErr", "jump"), 0.0),
    "promote.fpr_bound": 0.5,
    "promote.latency_ratio": 10.0,
    "promote.explained": 5,
    "promote.completeness": 10.0,
    "promote.evidence": {"top": 1, "floor": -10.0},
}
"""Of the demo's params.yaml: small, so that two trainings fit into a few minutes."""
WATCHFUL: Final = {
    "TRAILWATCH_DRIFT_CLOCK": "event",
    "TRAILWATCH_DRIFT_EVERY_S": "1",
    "TRAILWATCH_DRIFT_READ_S": "0.5",
    "TRAILWATCH_DRIFT_SETTLE_S": "60",
    "TRAILWATCH_AIRFLOW_FOLLOW_S": "2",
    "TRAILWATCH_POLL_S": "2",
    "TRAILWATCH_REQUESTS_PER_MINUTE": "0",
}
"""Of the platform: windows move by event time, and everybody looks often."""


class DemoError(RuntimeError):
    """The loop did not close; says where, and where to look."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What the service said after a day.

    Attributes:
        day: day of the world, 0 is the first that comes through the service.
        state: `state` of `/health/drift`.
        phase: `retrain.state` of it.
        score: `max_score` of it.
        version: the champion that it is about.
        worst: the column with that score.
    """

    day: int
    state: str
    phase: str
    score: float
    version: str
    worst: str = ""


@dataclass(slots=True)
class Story:
    """What happened.

    Attributes:
        change: day on which the factory opens.
        moments: after each day.
        lines: (seconds since the beginning, day, what), as printed.
        outcome: of the episode: promoted, rejected or failed; "" before its end.
        reason: what asked for the training.
        dag_run_id: of the training.
    """

    change: int
    moments: list[Moment] = field(default_factory=list)
    lines: list[tuple[float, int, str]] = field(default_factory=list)
    outcome: str = ""
    reason: tuple[str, ...] = ()
    dag_run_id: str = ""


@dataclass(frozen=True, slots=True)
class Platform:
    """A platform over a project folder."""

    home: Path
    environment: dict[str, str] = field(repr=False)

    def command(self, *words: str) -> None:
        """Run a module of the home's own code.

        Raises:
            DemoError: it failed.
        """
        with (self.home.parent / "commands.log").open("a") as log:
            place = log.tell()
            done = subprocess.run(
                [sys.executable, "-m", *words],
                cwd=self.home,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                check=False,
            )
        if done.returncode:
            said = Path(log.name).read_text(errors="replace")[place:].strip()
            raise DemoError(f"{' '.join(words)} failed:\n{said[-2000:]}\nAll: {log.name}")

    def url(self, name: str) -> str:
        """Where a service is, by the middle of its variable; "" is serving."""
        return f"http://127.0.0.1:{self.environment[f'TRAILWATCH{name}_PORT']}"

    def secret(self, name: str) -> str:
        """One of the platform's secrets."""
        lines = (self.home / "state" / "platform" / "secrets.env").read_text().splitlines()
        return next(line.split("=", 1)[1].strip("'") for line in lines if line.startswith(name))

    def serving(self) -> httpx.Client:
        """A client of serving with the platform's key."""
        return httpx.Client(
            base_url=self.url(""),
            headers={"Authorization": f"Bearer {self.secret('TRAILWATCH_API_KEY=')}"},
            timeout=120,
            trust_env=False,
        )

    def airflow(self) -> httpx.Client:
        """A client of Airflow that has logged in as the bot."""
        url = self.url("_AIRFLOW")
        login = {"username": "bot", "password": self.secret("AIRFLOW_BOT_PASSWORD=")}
        answer = httpx.post(f"{url}/auth/token", json=login, timeout=60, trust_env=False)
        token = answer.raise_for_status().json()["access_token"]
        headers = {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False)


class Demo:
    """One run of the loop."""

    def __init__(
        self, folder: Path, plan: Plan, say: Callable[[str], object], **settings: Any
    ) -> None:
        """Prepare; nothing is done yet.

        Args:
            folder: replaced by this run.
            plan: of the world.
            say: takes each line of the timeline.
            settings: further entries of params.yaml, named like `train.epochs`.
        """
        self.folder, self.plan, self._say = folder, plan, say
        self.story = Story(plan.change - plan.learned)
        self.platform = Platform(folder / "home", _environment(folder / "home"))
        self._settings = SETTINGS | {k.replace("__", "."): v for k, v in settings.items()}
        self._began = time.monotonic()
        self._day, self._sent = 0, 0
        self._seen: tuple[object, ...] = ()
        self._live = pa.table({})

    def tell(self, what: str) -> None:
        """A line of the timeline."""
        took = time.monotonic() - self._began
        self.story.lines.append((took, self._day, what))
        self._say(f"{int(took) // 60:2d}:{int(took) % 60:02d}  day {self._day:3d}  {what}")

    def train(self) -> None:
        """Make the project and its first model."""
        shutil.rmtree(self.folder, ignore_errors=True)
        home = self.platform.home
        _copy(home)
        self._live = demo_world.made(self.plan, home / "data")
        params.change(home / "params.yaml", self._settings)
        _git(home, "init", "--quiet", "--initial-branch", "main")
        _git(home, "add", "--all")
        _git(home, "commit", "--quiet", "--message", "The demo's project")
        self.platform.command("dvc", "add", "--quiet", "data")
        self.tell(
            f"a world of {self.plan.learned} days; {self._live.num_rows:,} scans are still to come"
        )
        self.platform.command("dvc", "repro", "--quiet")
        _git(home, "add", "--all")
        _git(home, "commit", "--quiet", "--message", "Train")
        found = json.loads((home / "models" / "weights" / "reference.json").read_text())
        known = found["calibration"]
        self.tell(
            f"the first model is trained; drift reference of {found['n']:,} scans, "
            f"{found['days']} days: {known['status']}{known['reason'] and ': '}{known['reason']}"
        )
        self._fill(home)

    def _fill(self, home: Path) -> None:
        """Let the service remember the project's scans: goods on the road have a past."""
        place = home / "state" / "trailwatch" / "history"
        place.parent.mkdir(parents=True, exist_ok=True)
        sites = read_sites(home / "data" / "sites.csv")
        found = read_scans(home / "data" / "scans.parquet", sites)
        event_id = np.asarray(found.event_id).astype(np.int64)
        history = open_history(f"lmdb:{place}", keep_days_after_sale=400, keep_days_idle=400)
        try:
            book = SiteBook(history, found.sites)
            number = book.numbers(found.sites.ids, np.zeros(len(found.sites), np.int8))
            scans = replace(found.scans, site=number[found.scans.site])
            for first in range(0, len(scans), 5_000):
                rows = np.arange(first, min(first + 5_000, len(scans)))
                history.remember(scans.take(rows), event_id[scans.row[rows]])
        finally:
            history.close()

    @contextmanager
    def up(self) -> Iterator[None]:
        """The platform, brought down at the end."""
        try:
            self.platform.command("deploy", "up")
            with self.platform.serving() as serving:
                _until(lambda: _judge(serving).endswith(" 1"), 180, "the first champion serves")
            with self.platform.airflow() as airflow:
                _until(lambda: _known(airflow), 180, "Airflow knows the DAG")
            for name, what in (("", "serving"), ("_AIRFLOW", "Airflow"), ("_MLFLOW", "MLflow")):
                self.tell(f"{what:8} {self.platform.url(name)}")
            yield
        finally:
            with suppress(DemoError):
                self.platform.command("deploy", "down")

    def replay(self, days: int, until: Callable[[Moment], bool] = lambda _: False) -> Moment:
        """Score the scans of some days, one after the other.

        Args:
            days: how many at most.
            until: the last day is the first one after which this is true.

        Raises:
            DemoError: the service or the monitor cannot keep up.
        """
        time_us = np.asarray(self._live["time_us"])
        start_us = self.plan.start_us + self.plan.learned * DAY_US
        with self.platform.serving() as client:
            for _ in range(days):
                bounds = start_us + np.array([self._day, self._day + 1]) * DAY_US
                first, stop = np.searchsorted(time_us, bounds).tolist()
                for a in range(first, stop, MOST_SCANS):
                    self._score(client, a, min(a + MOST_SCANS, stop))
                moment = self._look(client)
                self._day += 1
                if until(moment):
                    break
        return moment

    def _score(self, client: httpx.Client, first: int, stop: int) -> None:
        rows = self._live.slice(first, stop - first).to_pylist()
        data = [
            {
                "epc_code": row["epc_code"],
                "location_id": row["location_id"],
                "event_type": row["event_type"],
                "event_time": str(np.datetime64(row["time_us"], "us")),
                "event_id": FIRST_EVENT + first + i,
                "file_id": 1,
            }
            for i, row in enumerate(rows)
        ]
        answer = client.post("/score", json={"data": data})
        if answer.status_code != 200:
            raise DemoError(f"/score answered {answer.status_code}: {answer.text[:500]}")
        self._sent += len(data)

    def _look(self, client: httpx.Client) -> Moment:
        """What `/health/drift` says when everything has been read."""
        asked = time.time()

        def read() -> dict[str, Any] | None:
            told: dict[str, Any] = client.get("/health/drift").json()
            fresh = str(told.get("evaluated_at") or "") > _iso(asked)
            return told if fresh and told.get("lag_events") == 0 else None

        told = _until(read, 120, "the monitor has read everything")
        moment = Moment(
            self._day,
            str(told["state"]),
            str(told["retrain"]["state"]),
            float(told["max_score"] or 0.0),
            str(told["model_version"]),
            max(told["features"], key=lambda name: told["features"][name]["score"], default=""),
        )
        new = {name: one["status"] for name, one in told["locations"].items() if one["n"] >= 20}
        seen = (moment.state, moment.version, tuple(sorted(new.items())))
        if seen != self._seen:
            self.tell(_described(told, new))
        self._seen = seen
        self.story.moments.append(moment)
        return moment

    def change(self) -> None:
        """The new factory and its warehouse are entered into the site book."""
        self.tell("A NEW FACTORY OPENS, AND EVERY DWELL TAKES TWICE AS LONG FROM NOW ON")
        with self.platform.serving() as client:
            for site in demo_world.new_sites():
                details = {
                    "name": site["scan_location"],
                    "tier": site["tier"],
                    "latitude": site["Latitude"],
                    "longitude": site["Longitude"],
                }
                path = f"/admin/sites/{site['location_id']}"
                client.put(path, json=details).raise_for_status()

    def confirm(self) -> None:
        """An analyst looks at scans of the new factory: they are as they should be."""
        factory = demo_world.new_sites()[0]["location_id"]
        there = np.asarray(self._live["location_id"]) == factory
        rows = np.flatnonzero(there[: self._sent])[:CONFIRMED].tolist()
        with self.platform.serving() as client:
            for row in rows:
                said = {
                    "event_id": FIRST_EVENT + row,
                    "anomaly": "locErr",
                    "verdict": "wrong",
                    "who": "an analyst",
                    "why": "the new factory",
                }
                client.post("/feedback", json=said).raise_for_status()
        self.tell(f"an analyst confirms {len(rows)} scans of factory {factory}")

    def retrained(self) -> None:
        """Wait until the training that was asked for has ended, and what came of it is served.

        Raises:
            DemoError: nothing was asked for, or it did not end.
        """
        with self.platform.serving() as serving, self.platform.airflow() as airflow:
            told = serving.get("/health/drift").json()
            self.story.reason = tuple(told["retrain"]["reason"])
            run = str(told["retrain"]["dag_run_id"])
            self.story.dag_run_id = run
            self.tell(f"retraining is asked for, because of {', '.join(self.story.reason)}: {run}")
            said: set[str] = set()
            end = time.monotonic() + PATIENCE_S
            while not self.story.outcome:
                if time.monotonic() > end:
                    raise DemoError(f"{run} does not end; see {self.platform.url('_AIRFLOW')}")
                self._follow(airflow, run, said)
                self.story.outcome = _closed(serving, run)
                time.sleep(1)
            self._follow(airflow, run, said)
            self.tell(f"the episode ends: {self.story.outcome}")
            if self.story.outcome == "promoted":
                _until(lambda: _judge(serving).endswith(" 2"), 120, "the new champion serves")
                self.tell(f"serving answers with {_judge(serving)}")

    def _follow(self, airflow: httpx.Client, run: str, said: set[str]) -> None:
        """Tell which tasks have ended."""
        answer = airflow.get(f"/api/v2/dags/retrain/dagRuns/{run}/taskInstances")
        if answer.status_code != 200:
            return
        for task in answer.json()["task_instances"]:
            name, state = task["task_id"], task["state"]
            if state in ("success", "failed") and f"{name} {state}" not in said:
                said.add(f"{name} {state}")
                took = task["duration"] or 0.0
                self.tell(f"  Airflow: {name} {state} ({took:.0f} s)")
                if state == "failed":
                    logs = self.platform.home / "state" / "platform" / "airflow" / "logs"
                    self.tell(f"  see {logs}")


def looped(demo: Demo, honest: int, after: int) -> Story:
    """The whole loop.

    Args:
        demo: as it was made.
        honest: days before the change, as in its plan.
        after: days to watch the new champion.

    Raises:
        DemoError: the loop did not close.
    """
    demo.tell("a project of its own is made and trained")
    demo.train()
    demo.tell("the platform is brought up: PostgreSQL, MLflow, Airflow, serving, monitor")
    with demo.up():
        demo.tell("honest traffic")
        before = demo.replay(honest)
        if before.state != "ok":
            raise DemoError(f"honest traffic is {before.state!r} after {honest} days")
        demo.change()
        moment = demo.replay(NOTICED, _asks)
        if not _asks(moment):
            demo.confirm()
            moment = demo.replay(MOST_LATER, _asks)
        if not _asks(moment):
            raise DemoError("the drift asks for no retraining")
        demo.retrained()
        if demo.story.outcome == "promoted":
            demo.tell("traffic goes on")
            last = demo.replay(after)
            if last.state not in ("ok", "warn"):
                raise DemoError(f"the new champion's traffic is {last.state!r}")
            demo.tell(
                f"{last.state}: the new champion knows this world; score {last.score:.2f} "
                f"({last.worst})"
            )
        else:
            demo.tell("the challenger was refused: the champion stays, and a person is asked")
        drawn(demo.story, demo.folder / "timeline.png")
        demo.tell("the platform is taken down")
    return demo.story


def main(argv: list[str] | None = None) -> int:
    """Run the demo; see `--help`. 1 where the loop did not close."""
    parser = argparse.ArgumentParser(prog="python -m bench.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "state" / "demo")
    parser.add_argument("--honest", type=int, default=9, help="days before the change")
    parser.add_argument("--after", type=int, default=7, help="days to watch the new champion")
    parser.add_argument("--lots", type=float, default=5.0, help="lots a day")
    asked = parser.parse_args(argv)
    learned = 130
    change = learned + asked.honest
    plan = Plan(learned, change, change + NOTICED + MOST_LATER + asked.after, asked.lots)
    demo = Demo(asked.folder.resolve(), plan, lambda line: print(line, flush=True))
    try:
        looped(demo, asked.honest, asked.after)
    except (DemoError, httpx.HTTPError) as error:
        print(f"the demo ends here: {error}", file=sys.stderr)
        return 1
    print(f"The timeline as a picture: {demo.folder / 'timeline.png'}")
    return 0


def _asks(moment: Moment) -> bool:
    return moment.phase in ("requested", "training")


def _described(told: dict[str, Any], new: dict[str, str]) -> str:
    """One line of `/health/drift`."""
    worst = sorted(told["features"].items(), key=lambda item: -item[1]["score"])[:2]
    columns = ", ".join(f"{name} {one['score']:.2f}" for name, one in worst)
    sites = ", ".join(f"{name} {status}" for name, status in new.items())
    return (
        f"/health/drift: {told['state']} (version {told['model_version']}; {columns}"
        f"{'; new sites: ' if sites else ''}{sites})"
    )


def _closed(serving: httpx.Client, run: str) -> str:
    """How the episode of a run ended, "" while it is open."""
    episode = int(run.rsplit("__e", 1)[1])
    answer = serving.get("/health/drift/history", params={"kind": "closed", "limit": 20})
    for event in answer.raise_for_status().json()["events"]:
        if event["facts"].get("episode") == episode:
            return str(event["facts"]["outcome"])
    return ""


def _judge(serving: httpx.Client) -> str:
    return str(serving.get("/health").json().get("judge", ""))


def _known(airflow: httpx.Client) -> bool:
    return airflow.get("/api/v2/dags/retrain").status_code == 200


def _until(true: Callable[[], Any], patience_s: float, what: str) -> Any:
    end = time.monotonic() + patience_s
    while True:
        with suppress(httpx.HTTPError):
            found = true()
            if found:
                return found
        if time.monotonic() > end:
            raise DemoError(f"not after {patience_s:.0f} s: {what}")
        time.sleep(0.25)


def _iso(seconds: float) -> str:
    return f"{np.datetime64(int(seconds * 1e6), 'us')}"


def _environment(home: Path) -> dict[str, str]:
    """Of the demo's commands: ports of its own, nothing of whoever runs it."""
    dropped = ("TRAILWATCH_", "AIRFLOW", "MLFLOW_", "PYTHONPATH", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {
        **kept,
        **WATCHFUL,
        **{
            f"TRAILWATCH{name}_PORT": str(port)
            for name, port in zip(PORTS, _free_ports(len(PORTS)), strict=True)
        },
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(home),
        "TRAILWATCH_HOME": str(home),
        "TRAILWATCH_AIRFLOW_BIN": str(ROOT / ".venv-airflow" / "bin"),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "1",
        "GX_ANALYTICS_ENABLED": "false",
    }


def _free_ports(n: int) -> list[int]:
    with ExitStack() as stack:
        bound = [stack.enter_context(socket.socket()) for _ in range(n)]
        for one in bound:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in bound]


def _copy(home: Path) -> None:
    """The checkout's files as they are now, without data and results."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    left = ("data.dvc", "dvc.lock", "metrics.json", "tests/", "docs/", "performance_history.csv")
    for name in listed:
        if name and not name.startswith(left) and (ROOT / name).is_file():
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, home / name)


def _git(home: Path, *words: str) -> None:
    who = ("-c", "user.name=demo", "-c", "user.email=demo@localhost")
    subprocess.run(["git", *who, *words], cwd=home, check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
