"""The monitor's state on real SQLite and real PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from monitoring import policy as p
from monitoring.policy import DAY, Reading
from monitoring.store import (
    FINAL,
    LeaseLostError,
    Store,
    StoreError,
    dag_run_id,
    default_url,
    open_store,
)
from tests.logbook.logged import Server, postgres_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'state' / 'drift.db'}"
    return request.getfixturevalue("server").url()


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = open_store(url, "trailwatch", create=True)
    yield store
    store.close()


def ask(store: Store, lease: object = None) -> p.Change:
    """Drift of version 7, in one step."""
    with store.change(lease) as step:
        step.apply(p.champion(step.monitor.policy, "7", DAY))
        change = p.evaluated(step.monitor.policy, Reading(2 * DAY, "7", {"gap_s": 1.5}, {}))
        step.apply(change)
    return change


def test_what_a_step_changes_is_there_together(store: Store, url: str):
    lease = store.lease("a", 60)
    with store.change(lease) as step:
        step.monitor.offset, step.monitor.detector = 17, b"\x00state"
        step.monitor.counts["read"] = 17
        step.monitor.evaluation = {"max_score": 1.5}
    change = ask(store, lease)
    store.close()
    again = open_store(url, "trailwatch")
    monitor = again.monitor(detector=True)
    assert (monitor.offset, monitor.detector, monitor.counts) == (17, b"\x00state", {"read": 17})
    assert monitor.evaluation == {"max_score": 1.5}
    assert monitor.policy == change.policy
    [asked] = again.requests("pending")
    assert asked.dag_run_id == "drift__trailwatch__v7__e1"
    assert asked.conf["champion"] == "7" and asked.conf["reason"] == ["gap_s"]
    assert [report.episode for report in again.reports()] == [1]
    assert [event.kind for event in again.history(9)] == [
        "requested",
        "opened",
        "level",
        "champion",
    ]
    assert again.monitor().detector is None
    again.close()


def test_a_step_that_fails_changes_nothing(store: Store):
    lease = store.lease("a", 60)

    def fail() -> None:
        with store.change(lease) as step:
            step.monitor.offset = 5
            step.apply(p.champion(step.monitor.policy, "7", DAY))
            step.apply(p.retrain(step.monitor.policy, "ann", DAY))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert store.monitor().offset == 0
    assert store.requests() == []
    assert store.history(9) == []


def test_one_evaluator_at_a_time_and_one_that_lost_its_lease_writes_nothing(store: Store):
    first = store.lease("a", 0.3)
    assert store.lease("b", 60) is None
    with store.change(first) as step:
        step.monitor.offset = 1
    time.sleep(0.4)
    second = store.lease("b", 60)
    assert second is not None
    with pytest.raises(LeaseLostError, match="b evaluates"), store.change(first) as step:
        step.monitor.offset = 2
    assert store.monitor().offset == 1
    store.release(first)
    assert store.lease("c", 60) is None
    store.release(second)
    assert store.lease("c", 60) is not None


def test_each_step_renews_the_lease(store: Store):
    lease = store.lease("a", 0.6)
    for _ in range(4):
        time.sleep(0.25)
        with store.change(lease):
            pass
        assert store.lease("b", 60) is None


def test_a_word_of_a_person_and_a_step_do_not_undo_each_other(store: Store, url: str):
    lease = store.lease("a", 60)
    with store.change(lease) as step:
        step.apply(p.champion(step.monitor.policy, "7", 0))
    errors: list[Exception] = []

    def person(who: str) -> None:
        mine = open_store(url, "trailwatch")
        try:
            for at in range(20):
                with mine.change() as step:
                    step.apply(p.acked(step.monitor.policy, who, at))
        except Exception as error:
            errors.append(error)
        finally:
            mine.close()

    people = [threading.Thread(target=person, args=(who,)) for who in ("ann", "bob")]
    for one in people:
        one.start()
    for _ in range(20):
        with store.change(lease) as step:
            step.monitor.offset += 1
            step.monitor.counts["read"] = step.monitor.offset
    for one in people:
        one.join()
    assert errors == []
    assert store.monitor().offset == 20
    assert len(store.history(100, kinds=("acked",))) == 40


def test_a_request_that_nobody_waits_for_is_cancelled(store: Store):
    store.lease("a", 60)
    ask(store)
    with store.change() as step:
        step.apply(p.champion(step.monitor.policy, "6", 3 * DAY))
    [asked] = store.requests(*FINAL)
    assert asked.outcome == "cancelled"
    assert "superseded" in asked.error


def test_a_delivered_request_is_not_cancelled(store: Store):
    store.lease("a", 60)
    ask(store)
    with store.change() as step:
        step.update("drift__trailwatch__v7__e1", outcome="delivered", delivered_us=5)
        step.apply(p.champion(step.monitor.policy, "6", 3 * DAY))
    [asked] = store.requests()
    assert (asked.outcome, asked.delivered_us) == ("delivered", 5)


def test_an_episode_cannot_be_asked_for_twice(store: Store):
    store.lease("a", 60)
    change = ask(store)
    with pytest.raises(StoreError), store.change() as step:
        step.apply(change)
    assert len(store.requests()) == 1


def test_alarms_are_noted_when_they_change(store: Store):
    store.lease("a", 60)
    for detail in ("wrong password", "wrong password", "", ""):
        with store.change() as step:
            step.alarm("airflow", detail)
    assert [event.facts["on"] for event in store.history(9)] == [False, True]
    assert store.monitor().alarms == {}


def test_history_is_read_in_pages_and_pruned(store: Store, monkeypatch: pytest.MonkeyPatch):
    store.lease("a", 60)
    with store.change() as step:
        for i in range(10):
            step.note("evaluation" if i % 2 else "level", {"i": i})
    newest = store.history(3)
    assert [event.facts["i"] for event in newest] == [9, 8, 7]
    assert [event.facts["i"] for event in store.history(2, before=newest[-1].id)] == [6, 5]
    assert [event.facts["i"] for event in store.history(2, kinds=("level",))] == [8, 6]
    monkeypatch.setattr("monitoring.store.MOST_HISTORY", 4)
    with store.change() as step:
        step.prune()
    assert [event.facts["i"] for event in store.history(99)] == [9, 8, 7, 6]


def test_a_state_that_is_not_there_is_not_made_by_readers(tmp_path: Path):
    url = f"sqlite:{tmp_path / 'state' / 'drift.db'}"
    with pytest.raises(StoreError, match="python -m monitoring"):
        open_store(url, "trailwatch")
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_a_monitor_is_told_so(store: Store):
    assert store.monitor() is None
    with pytest.raises(StoreError, match="python -m monitoring"), store.change():
        pass


def test_a_newer_schema_is_refused(tmp_path: Path):
    url = f"sqlite:{tmp_path / 'state' / 'drift.db'}"
    open_store(url, "trailwatch", create=True).close()
    with sqlite3.connect(url.removeprefix("sqlite:")) as connection:
        connection.execute("UPDATE drift_schema SET version = 99")
    with pytest.raises(StoreError, match="schema 99"):
        open_store(url, "trailwatch")


def test_a_policy_of_another_format_is_told(tmp_path: Path):
    url = f"sqlite:{tmp_path / 'drift.db'}"
    store = open_store(url, "trailwatch", create=True)
    store.lease("a", 60)
    with sqlite3.connect(tmp_path / "drift.db") as connection:
        connection.execute("UPDATE drift_monitors SET policy = replace(policy, '1', '2')")
    with pytest.raises(StoreError, match="not of format 1"):
        store.monitor()
    store.close()


@pytest.mark.parametrize("url", ["mysql://x", "sqlite:", "memory:"])
def test_other_urls_are_refused(url: str):
    with pytest.raises(ValueError, match="sqlite:<file>"):
        open_store(url, "trailwatch")


def test_a_file_that_is_no_database_is_told(tmp_path: Path):
    (tmp_path / "drift.db").write_text("something else, and long enough to be looked at" * 50)
    with pytest.raises(StoreError, match="not a database"):
        open_store(f"sqlite:{tmp_path / 'drift.db'}", "trailwatch")


def test_a_password_is_never_shown():
    with pytest.raises(StoreError) as told:
        open_store("postgresql://me:secret@127.0.0.1:1/x", "trailwatch", create=True)
    assert "secret" not in str(told.value)


def test_the_state_lies_beside_the_log():
    assert default_url("sqlite:state/m/log.db") == "sqlite:state/m/drift.db"
    assert default_url("sqlite:////var/log.db") == "sqlite:/var/drift.db"
    assert default_url("postgresql://h/d") == "postgresql://h/d"


def test_ids_of_runs_are_what_airflow_takes():
    assert dag_run_id("a b/c", "1+2", 3) == "drift__a-b-c__v1-2__e3"
