"""A small project with a trained model, and the whole platform over it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pandas as pd

from tests.behaviour.champions import set_params
from tests.deploy.platforms import ROOT, Platform, environment
from tests.pipelines.homes import Home, make

PATIENCE_S = 1_500
"""It takes four minutes on two idle cores; others may be at work beside it."""
# The gates themselves are tested elsewhere; two small models are not worth their bounds.
LENIENT = {
    "promote__bootstrap": 50,
    "promote__least_lots": 1,
    "promote__margins": {"map": 0.99, "f_beta": 0.99},
    "promote__floors": dict.fromkeys(("epcFake", "epcDup", "locErr", "evtOrderErr", "jump"), 0.0),
    "promote__fpr_bound": 1.0,
    "promote__latency_ratio": 100.0,
    "promote__explained": 5,
    "promote__completeness": 10.0,
    "promote__evidence": {"top": 1, "floor": -10.0},
}


@contextmanager
def trained_home() -> Iterator[Home]:
    """A project with a trained model, as `make run` leaves it."""
    folder = Path(tempfile.mkdtemp(prefix="trailwatch-"))
    try:
        made = make(folder / "home", scans=60_000)
        for room in ("deploy", "serving"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / room, made.folder / room, ignore=ignored)
        set_params(made.folder, **LENIENT)
        made.git("add", "--all")
        made.git("commit", "--quiet", "--message", "Promote what is not worth its bounds")
        said, status = call(made, "dvc", "repro", "--quiet")
        assert status == 0, said
        made.git("add", "--all")
        made.git("commit", "--quiet", "--message", "Train")
        yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def brought_up(home: Home) -> Iterator[Platform]:
    """The platform over a home, run from the home's own code."""
    airflow = str(ROOT / ".venv-airflow" / "bin")
    given = environment(home.folder, TRAILWATCH_AIRFLOW_BIN=airflow)
    made = Platform(home.folder, given, code=home.folder)
    try:
        done = made.command("up")
        assert done.returncode == 0, done.stdout + done.stderr
        yield made
    finally:
        made.command("down")


def call(home: Home, *words: str) -> tuple[str, int]:
    """What a module said, and how it ended."""
    process = home.start(*words)
    said, _ = process.communicate(timeout=PATIENCE_S)
    return said, process.returncode


def judge(client: httpx.Client) -> str:
    """Who judges."""
    return str(client.get("/health").json()["judge"])


def unseen(home: Home, folder: Path) -> list[dict[str, object]]:
    """Scans of lots that the project's data do not have, as requests hold them."""
    said, status = call(
        home, "world", "--out", str(folder / "other"), "--seed", "77", "--scans", "3000"
    )
    assert status == 0, said
    found = pd.read_parquet(folder / "other" / "scans.parquet").astype(str).head(1_000)
    rows = found[["epc_code", "location_id", "event_type", "event_time"]].to_dict("records")
    return [{**row, "event_id": i, "file_id": 1} for i, row in enumerate(rows)]


def tasks(client: httpx.Client, run: str) -> dict[str, str]:
    """State of each task of a run of `retrain`."""
    answer = client.get(f"/api/v2/dags/retrain/dagRuns/{run}/taskInstances")
    assert answer.status_code == 200, answer.text
    return {one["task_id"]: str(one["state"]) for one in answer.json()["task_instances"]}


def troubles(client: httpx.Client, run: str, logs: Path) -> str:
    """States of a run's tasks, and the end of the logs of those that failed."""
    told = tasks(client, run)
    bad = [name for name, state in told.items() if state in ("failed", "up_for_retry")]
    ends = [
        f"{path}:\n{path.read_text()[-3000:]}"
        for name in bad
        for path in logs.rglob(f"*task_id={name}/*.log")
    ]
    return "\n".join([str(told), *ends])
