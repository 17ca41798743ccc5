"""The whole DAG `retrain` in Airflow, on a small home: real git, DVC, MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.dags.conftest import ROOT

ML = ROOT / ".venv" / "bin"
MAKE = """
import sys
from pathlib import Path
from tests.pipelines.homes import make
make(Path(sys.argv[1]))
"""
RUN = """
import json, sys
sys.path.insert(0, sys.argv[1])
from airflow.dag_processing.dagbag import DagBag
dag = DagBag(sys.argv[1]).dags["retrain"]
run = dag.test(run_conf=json.loads(sys.argv[2]))
states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
print(json.dumps({"run": run.run_id, "state": str(run.state), "tasks": states}))
"""
STAGES = ("validate", "label", "sequence", "train", "evaluate", "register")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("retrain") / "home"
    there = {**os.environ, "PATH": f"{ML}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    subprocess.run([ML / "python", "-c", MAKE, folder], env=there, cwd=ROOT, check=True)
    return folder


def airflow(home: Path) -> dict[str, str]:
    """Airflow's environment, with a database of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW", "MLFLOW_TRACK"))}
    return {
        **kept,
        "AIRFLOW_HOME": str(home.parent / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "TRAILWATCH_HOME": str(home),
        "TRAILWATCH_ML_BIN": str(ML),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DVC_NO_ANALYTICS": "1",
    }


def run(home: Path, **conf: object) -> dict:
    words = [sys.executable, "-c", RUN, home / "dags", json.dumps(conf)]
    done = subprocess.run(words, env=airflow(home), capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.full
def test_retrain_ends_green_and_then_has_nothing_to_do(home: Path):
    migrate = [Path(sys.executable).with_name("airflow"), "db", "migrate"]
    subprocess.run(migrate, env=airflow(home), check=True, capture_output=True)
    first = run(home, epochs=1)
    assert first["state"] == "success", first
    done = {*STAGES, "prepare", "snapshot", "promote", "publish", "clean"}
    assert {name for name, state in first["tasks"].items() if state == "success"} == done
    branches = subprocess.run(
        ["git", "branch", "--list", "runs/retrain/*"], cwd=home, capture_output=True, text=True
    )
    assert len(branches.stdout.split()) == 1
    assert not list((home / "state" / "runs" / "retrain").glob("*/workspace"))
    second = run(home, epochs=1)
    assert second["tasks"]["snapshot"] == "skipped"
    assert {second["tasks"][name] for name in (*STAGES, "promote", "publish")} == {"skipped"}
    assert second["tasks"]["clean"] == "success"
