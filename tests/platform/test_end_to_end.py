"""From `make up` to a new champion that serves: real Airflow, DVC, MLflow, PostgreSQL, serving.

A small project is trained once as a person would do it. Then its service is asked about scans that
nobody has seen, `retrain` is triggered over REST, and the model that comes of it has to answer.
Later runs are approved and rejected by a person over REST, and given what they cannot use.
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
    asked,
    brought_up,
    by_hand,
    champion,
    decided,
    judge,
    log_of,
    say,
    tasks,
    troubles,
    unseen,
    versions,
)

pytestmark = pytest.mark.full

RUN = "by-hand"
STAGES = ("validate", "label", "sequence", "train", "evaluate", "register")
ASKING = {"promotion": "approval", "force": True}
NOT_ASKED = {"approval", "approved", "settle"}


@pytest.fixture(scope="module")
def up(home: Home) -> Iterator[Platform]:
    with brought_up(home) as made:
        yield made


@pytest.fixture(scope="module")
def airflow(up: Platform) -> Iterator[httpx.Client]:
    with up.airflow() as client:
        until(lambda: client.get("/api/v2/dags/retrain").status_code == 200, 180, "DAG is known")
        yield client


def ended_well(up: Platform, airflow: httpx.Client, run: str, *may_fail: str) -> dict[str, str]:
    """Wait for the end of a run of which no task fails but those; returns its tasks' states."""

    def ended() -> bool:
        state, found = states(airflow, "retrain")[run], tasks(airflow, run)
        bad = [n for n, s in found.items() if s in ("failed", "up_for_retry") and n not in may_fail]
        assert state != "failed" and not bad, troubles(airflow, run, up)
        return state == "success"

    until(ended, PATIENCE_S, "the run ends")
    return tasks(airflow, run)


def until_asked(up: Platform, airflow: httpx.Client, run: str) -> str:
    """Wait until a run asks a person; returns what it tells them."""

    def is_asked() -> bool:
        assert states(airflow, "retrain")[run] != "failed", troubles(airflow, run, up)
        return tasks(airflow, run).get("approval") == "awaiting_input"

    until(is_asked, PATIENCE_S, "a person is asked")
    found = asked(airflow, run)
    assert found is not None and found["options"] == ["Approve", "Reject"]
    return str(found["body"])


def answer(airflow: httpx.Client, run: str, option: str) -> None:
    """Give a person's answer, again where Airflow asks again: see docs/orchestration.md."""

    def taken() -> bool:
        found = asked(airflow, run)
        assert found is not None
        state = tasks(airflow, run)["approval"]
        if state == "awaiting_input" and not found["response_received"]:
            assert say(airflow, run, option) == 200
        return state == "success"

    until(taken, PATIENCE_S, "the answer is taken")


def test_a_retraining_by_rest_ends_in_a_champion_that_serves(home, up, airflow, tmp_path):
    data = unseen(home, tmp_path)
    with up.serving() as serving:
        until(lambda: judge(serving) == "trailwatch 1", 180, "the first champion serves")
        answer = serving.post("/score", json={"data": data})
        assert answer.status_code == 200, answer.text
        assert trigger(airflow, "retrain", RUN, promotion="auto") == 200
        found = ended_well(up, airflow, RUN)
        assert set(found) > {"prepare", "snapshot", *STAGES, "promote", "publish", "clean"}
        skipped = {name: state for name, state in found.items() if state != "success"}
        assert skipped == dict.fromkeys(NOT_ASKED, "skipped")
        assert "promoted" in decided(airflow, RUN)
        until(lambda: judge(serving) == "trailwatch 2", 180, "the new champion serves")
        answer = serving.post("/score", json={"data": [{**data[0], "event_id": 10**6}]})
        assert answer.status_code == 200, answer.text
        assert answer.json()["modelVersion"] == "2"
    assert f"runs/retrain/{RUN}" in home.git("branch", "--list", "runs/*")
    assert [path for path in Path(up.settings.remote).rglob("*") if path.is_file()]
    assert not (up.settings.runs / "retrain" / RUN / "workspace").exists()


def test_the_version_names_the_run_that_made_it(up):
    found = champion(up)
    tags = {tag["key"]: tag["value"] for tag in found["tags"]}
    assert found["version"] == "2" and "Mean average precision" in found["description"]
    assert tags["dag_run_id"] == RUN and tags["dag_id"] == "retrain"
    assert len(tags["git_commit"]) == 40
    assert len(tags["dvc_lock_hash"]) == 64


def test_the_first_champion_came_with_its_figures(up):
    api = f"{up.settings.url('mlflow')}/api/2.0/mlflow"
    with httpx.Client(trust_env=False) as client:
        asked = {"name": "trailwatch", "version": "1"}
        first = client.get(f"{api}/model-versions/get", params=asked).json()["model_version"]
        where = {"run_id": first["run_id"], "path": "evaluation"}
        found = client.get(f"{api}/artifacts/list", params=where).json()["files"]
    assert "Mean average precision" in first["description"]
    assert {"evaluation/model_card.md", "evaluation/plots"} <= {one["path"] for one in found}


@pytest.mark.parametrize(
    ("dag", "conf", "said"),
    [
        ("retrain", {"epochs": 0}, "epochs"),
        ("retrain", {"promotion": "perhaps"}, "promotion"),
        ("retrain", {"window_days": 3}, "window_days"),
        ("backfill", {}, "as_of"),
        ("backfill", {"as_of": "last spring"}, "as_of"),
        ("sweep", {"trials": 0}, "trials"),
        ("report", {"days": 0}, "days"),
    ],
)
def test_a_trigger_with_params_that_cannot_be_used_is_refused(airflow, dag, conf, said):
    body = {"dag_run_id": "bad", "logical_date": None, "conf": conf}
    answer = airflow.post(f"/api/v2/dags/{dag}/dagRuns", json=body)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["detail"]
    assert "bad" not in states(airflow, dag)


def test_a_misspelled_param_fails_its_run_at_once(up, airflow):
    assert trigger(airflow, "retrain", "misspelled", promotoin="never") == 200
    until(lambda: states(airflow, "retrain")["misspelled"] == "failed", 180, "the run fails")
    assert "retrain has no param promotoin" in log_of(up, "misspelled", "prepare")
    assert tasks(airflow, "misspelled")["snapshot"] == "upstream_failed"


def test_without_news_the_run_is_skipped_and_says_why(up, airflow):
    assert trigger(airflow, "retrain", "idle") == 200
    found = ended_well(up, airflow, "idle")
    said = log_of(up, "idle", "snapshot")
    assert f"no new data since run {RUN}" in said, said
    assert {found[name] for name in ("snapshot", *STAGES, "promote", "publish")} == {"skipped"}


def test_what_a_person_approves_is_promoted_and_a_remote_that_was_away_is_met_again(up, airflow):
    remote = Path(up.settings.remote)
    aside = remote.rename(remote.with_name("aside"))
    remote.write_text("a disk that is not mounted")
    assert trigger(airflow, "retrain", "approved", epochs=1, **ASKING) == 200
    told = until_asked(up, airflow, "approved")
    assert "Version 3 passed every gate" in told and "map: gain " in told
    assert champion(up)["version"] == "2"
    assert say(airflow, "approved", "Perhaps") >= 400
    answer(airflow, "approved", "Approve")
    published = lambda: tasks(airflow, "approved")["publish"]  # noqa: E731
    until(lambda: published() == "up_for_retry", PATIENCE_S, "publishing fails")
    assert champion(up)["version"] == "3"
    assert "did not take the data" in log_of(up, "approved", "publish")
    remote.unlink()
    aside.rename(remote)
    found = ended_well(up, airflow, "approved", "publish")
    assert set(found.values()) == {"success"}
    tags = versions(up)["3"]
    assert (tags["promotion"], tags["promotion_by"]) == ("promoted", "bot")
    assert say(airflow, "approved", "Reject") == 409, "an answer is final"


def test_what_a_person_rejects_is_refused_and_written_down(up, airflow):
    assert trigger(airflow, "retrain", "rejected", epochs=3, **ASKING) == 200
    until_asked(up, airflow, "rejected")
    answer(airflow, "rejected", "Reject")
    found = ended_well(up, airflow, "rejected")
    assert found["approved"] == "skipped" and found["settle"] == found["publish"] == "success"
    assert champion(up)["version"] == "3"
    tags = versions(up)["4"]
    assert (tags["promotion"], tags["promotion_by"]) == ("rejected", "bot")
    history = by_hand(up, "python", "-m", "pipelines.promote", "--history")
    *_, waiting, last = history.splitlines()
    assert "waiting" in waiting and "rejected" in last and "asked by run rejected" in last


@pytest.mark.parametrize(
    ("dag", "conf", "last"),
    [
        ("report", {"days": 7}, "report"),
        ("backfill", {"as_of": "2025-07-01", "epochs": 1}, "compare"),
        ("sweep", {"trials": 2, "epochs": 1}, "publish"),
    ],
)
def test_the_other_dags_run_to_their_end(home, up, airflow, tmp_path, dag, conf, last):
    before = champion(up)["version"]
    with up.serving() as serving:  # a report needs something to report on
        until(lambda: judge(serving) == f"trailwatch {before}", 180, "the champion serves")
        assert serving.post("/score", json={"data": unseen(home, tmp_path)}).status_code == 200
    assert trigger(airflow, dag, "once", **conf) == 200
    ended = lambda: states(airflow, dag)["once"] in ("success", "failed")  # noqa: E731
    until(ended, PATIENCE_S, f"{dag} ends")
    assert states(airflow, dag)["once"] == "success", troubles(airflow, "once", up, dag)
    assert tasks(airflow, "once", dag)[last] == "success"
    assert champion(up)["version"] == before


def test_a_rollback_by_hand_is_followed_by_the_service(up):
    with up.serving() as serving:
        until(lambda: judge(serving) == "trailwatch 3", 180, "the approved champion serves")
        said = by_hand(up, "python", "-m", "pipelines.promote", "--rollback", "--why", "alarms")
        assert "is version 2 again, not 3; it took " in said
        until(lambda: judge(serving) == "trailwatch 2", 60, "the champion before serves")


def test_down_leaves_nothing(up):
    processes = up.processes()
    assert processes
    done = up.command("down")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not running(processes)
    assert not up.processes()
