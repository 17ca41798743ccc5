"""A small project with a trained model, and the whole platform over it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pandas as pd

from deploy.services import PROJECT
from tests.behaviour.champions import set_params
from tests.deploy.platforms import PYTHON, ROOT, Platform, environment
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


def decided(client: httpx.Client, run: str) -> str:
    """What the task `promote` of a run returned."""
    path = f"/api/v2/dags/retrain/dagRuns/{run}/taskInstances/promote/xcomEntries/return_value"
    return client.get(path).text


def asked(client: httpx.Client, run: str) -> dict[str, Any] | None:
    """What a run asks a person, None where it asks nothing."""
    answer = client.get(f"/api/v2/dags/retrain/dagRuns/{run}/hitlDetails")
    assert answer.status_code == 200, answer.text
    found = answer.json()["hitl_details"]
    return dict(found[0]) if found else None


def say(client: httpx.Client, run: str, option: str) -> int:
    """Give a person's answer; returns the status."""
    path = f"/api/v2/dags/retrain/dagRuns/{run}/taskInstances/approval/-1/hitlDetails"
    body = {"chosen_options": [option], "params_input": {}}
    return client.patch(path, json=body).status_code


def versions(up: Platform) -> dict[str, dict[str, str]]:
    """The tags of every version in the platform's registry; a server that is down has none."""
    url = f"{up.settings.url('mlflow')}/api/2.0/mlflow/model-versions/search"
    try:
        answer = httpx.get(url, trust_env=False, timeout=30)
    except httpx.TransportError:
        return {}
    found = answer.json().get("model_versions", []) if answer.status_code == 200 else []
    return {one["version"]: {tag["key"]: tag["value"] for tag in one["tags"]} for one in found}


def champion(up: Platform) -> dict[str, Any]:
    """The champion's version, as MLflow has it."""
    url = f"{up.settings.url('mlflow')}/api/2.0/mlflow/registered-models/alias"
    given = {"name": "trailwatch", "alias": "champion"}
    return dict(httpx.get(url, params=given, trust_env=False).json()["model_version"])


def by_hand(up: Platform, *words: str) -> str:
    """What a command says that meets the platform's registry, log and ledger, as docs tell it."""
    command = f"set -a; . {up.settings.folder / PROJECT}; set +a; exec {shlex.join(words)}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=up.home,
        env={**up.environment, "PATH": f"{PYTHON.parent}:{up.environment['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def tasks(client: httpx.Client, run: str, dag: str = "retrain") -> dict[str, str]:
    """State of each task of a run."""
    answer = client.get(f"/api/v2/dags/{dag}/dagRuns/{run}/taskInstances")
    assert answer.status_code == 200, answer.text
    return {one["task_id"]: str(one["state"]) for one in answer.json()["task_instances"]}


def log_of(up: Platform, run: str, task: str, dag: str = "retrain") -> str:
    """What all attempts of a task said."""
    logs = up.settings.folder / "airflow" / "logs" / f"dag_id={dag}" / f"run_id={run}"
    return "\n".join(path.read_text() for path in sorted(logs.glob(f"task_id={task}/*.log")))


def troubles(client: httpx.Client, run: str, up: Platform, dag: str = "retrain") -> str:
    """States of a run's tasks, and the end of the logs of those that failed."""
    told = tasks(client, run, dag)
    bad = [name for name, state in told.items() if state in ("failed", "up_for_retry")]
    logs = (f"{name}:\n{log_of(up, run, name, dag)[-3000:]}" for name in bad)
    return "\n".join([str(told), *logs])
