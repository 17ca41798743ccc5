"""The relay against the real Airflow: its API server with a DAG of one empty task."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from monitoring.relay import Airflow, MisconfiguredError
from monitoring.store import dag_run_id
from tests.monitoring.airflow_real import AIRFLOW, airflow

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(not AIRFLOW.exists(), reason="Airflow's environment is not installed"),
]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with airflow(tmp_path_factory.mktemp("airflow")) as one:
        yield one.url


def client(url: str, password: str = "right", dag: str = "retrain") -> Airflow:
    return Airflow(url, "bot", password, dag, timeout_s=60)


def test_a_run_is_made_once_and_read_back(url: str):
    airflow = client(url)
    name = dag_run_id("trailwatch", "7", 3)
    conf = {"champion": "7", "reason": ["gap_s"], "request": "abc"}
    assert airflow.run(name) is None
    assert airflow.trigger(name, conf)
    assert not airflow.trigger(name, {**conf, "request": "another"})
    run = airflow.run(name)
    assert run is not None
    assert run["state"] == "queued"
    assert run["conf"]["request"] == "abc"
    airflow.close()


def test_a_new_dag_is_paused_and_takes_runs_without_an_error(url: str):
    airflow = client(url)
    assert airflow.is_paused()
    assert airflow.trigger(dag_run_id("trailwatch", "7", 4), {})
    airflow.close()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"password": "wrong"}, "TRAILWATCH_AIRFLOW_PASSWORD"),
        ({"dag": "nothing"}, "no DAG 'nothing'"),
    ],
    ids=["password", "dag"],
)
def test_what_a_person_must_mend(url: str, asked: dict[str, str], said: str):
    airflow = client(url, **asked)
    with pytest.raises(MisconfiguredError, match=said):
        airflow.is_paused()
    airflow.close()


def test_an_id_that_airflow_does_not_take_is_refused(url: str):
    airflow = client(url)
    with pytest.raises(MisconfiguredError, match=r"4\d\d"):
        airflow.trigger("scheduled__2026-01-01", {})
    with pytest.raises(MisconfiguredError, match=r"4\d\d"):
        airflow.trigger("an id with spaces", {})
    airflow.close()


def test_a_token_that_is_worth_nothing_is_replaced(url: str):
    airflow = client(url)
    airflow._token = "old"
    assert airflow.run("nothing") is None
    assert airflow._token != "old"
    airflow.close()
