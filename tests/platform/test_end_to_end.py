"""From `make up` to a new champion that serves: real Airflow, DVC, MLflow, PostgreSQL, serving.

A small project is trained once as a person would do it. Then its service is asked about scans that
nobody has seen, `retrain` is triggered over REST, and the model that comes of it has to answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.deploy.platforms import Platform, running, states, trigger, until
from tests.pipelines.homes import Home
from tests.platform.homes_up import (
    PATIENCE_S,
    brought_up,
    judge,
    tasks,
    trained_home,
    troubles,
    unseen,
)

pytestmark = pytest.mark.full

RUN = "by-hand"
STAGES = ("validate", "label", "sequence", "train", "evaluate", "register")
NOT_ASKED = {"approval", "approved", "settle"}


@pytest.fixture(scope="module")
def home() -> Iterator[Home]:
    with trained_home() as made:
        yield made


@pytest.fixture(scope="module")
def up(home: Home) -> Iterator[Platform]:
    with brought_up(home) as made:
        yield made


def test_a_retraining_by_rest_ends_in_a_champion_that_serves(home, up, tmp_path):
    data = unseen(home, tmp_path)
    with up.airflow() as airflow, up.serving() as serving:
        until(lambda: judge(serving) == "trailwatch 1", 180, "the first champion serves")
        until(lambda: airflow.get("/api/v2/dags/retrain").status_code == 200, 180, "DAG is known")
        answer = serving.post("/score", json={"data": data})
        assert answer.status_code == 200, answer.text
        assert trigger(airflow, "retrain", RUN, promotion="auto") == 200

        def ended() -> bool:
            told = troubles(airflow, RUN, up.settings.folder / "airflow" / "logs")
            state = states(airflow, "retrain")[RUN]
            assert state != "failed" and "up_for_retry" not in told, told
            return state == "success"

        until(ended, PATIENCE_S, "the run ends")
        found = tasks(airflow, RUN)
        assert set(found) > {"prepare", "snapshot", *STAGES, "promote", "publish", "clean"}
        skipped = {name: state for name, state in found.items() if state != "success"}
        assert skipped == dict.fromkeys(NOT_ASKED, "skipped")
        path = f"/api/v2/dags/retrain/dagRuns/{RUN}/taskInstances/promote/xcomEntries/return_value"
        decided = airflow.get(path).text
        assert "promoted" in decided, decided
        until(lambda: judge(serving) == "trailwatch 2", 180, "the new champion serves")
        answer = serving.post("/score", json={"data": [{**data[0], "event_id": 10**6}]})
        assert answer.status_code == 200, answer.text
        assert answer.json()["modelVersion"] == "2"
    assert f"runs/retrain/{RUN}" in home.git("branch", "--list", "runs/*")
    assert [path for path in Path(up.settings.remote).rglob("*") if path.is_file()]
    assert not (up.settings.runs / "retrain" / RUN / "workspace").exists()


def test_the_version_names_the_run_that_made_it(up):
    url = f"{up.settings.url('mlflow')}/api/2.0/mlflow/registered-models/alias"
    asked = {"name": "trailwatch", "alias": "champion"}
    found = httpx.get(url, params=asked, trust_env=False).json()["model_version"]
    tags = {tag["key"]: tag["value"] for tag in found["tags"]}
    assert found["version"] == "2"
    assert tags["dag_run_id"] == RUN and tags["dag_id"] == "retrain"
    assert len(tags["git_commit"]) == 40
    assert len(tags["dvc_lock_hash"]) == 64


def test_down_leaves_nothing(up):
    processes = up.processes()
    assert processes
    done = up.command("down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not running(processes)
    assert not up.processes()
