"""Drift over HTTP: the document word by word, when it is 503, what people may say, metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from logbook.opened import open_log
from monitoring import policy as p
from monitoring.policy import DAY
from monitoring.reference import MONITORED
from monitoring.status import moment
from monitoring.store import Store
from serving.security import make_key
from serving.settings import Settings
from tests.monitoring.states import policy_of, written
from tests.serving.served import served


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path, history="memory:")


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'state' / 'trailwatch' / 'drift.db'}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, FastAPI]]:
    home = tmp_path_factory.mktemp("home")
    with served(Settings(home=home, history="memory:")) as running:
        yield running


@pytest.fixture
def api(server: tuple[httpx.Client, FastAPI], url: str) -> httpx.Client:
    """A running service that has not looked at the state of this test yet."""
    client, app = server
    source = app.state.service.drift
    source.close()
    source._url = url
    return client


def drifting(url: str) -> tuple[Store, int]:
    store, at = written(url)
    with store.change() as step:
        step.report(1, link="runs:/abc/drift/e1/report.html")
        step.update("drift__trailwatch__v7__e1", outcome="delivered", delivered_us=step.at_us)
    return store, at


def test_the_document_word_by_word(api: httpx.Client, url: str):
    store, at = drifting(url)
    answer = api.get("/health/drift")
    assert answer.status_code == 200
    assert answer.json() == {
        "version": 1,
        "status": "warn",
        "state": "drift",
        "detail": "",
        "model": "trailwatch",
        "model_version": "7",
        "reference": {"id": "r1", "n": 56000, "clusters": 1400, "days": 28},
        "evaluated_at": moment(at),
        "clock": "received",
        "clock_at": moment(at),
        "lag_events": 12,
        "counts": {"counted": 14000},
        "calibration": {
            "status": "calibrated",
            "reason": "",
            "unit": "weekday",
            "target_p_30d": 0.10,
            "estimate_p_30d": 0.05,
            "ci95": [0.01, 0.17],
            "blocks": 28,
        },
        "max_score": 1.31,
        "features": {
            "gap_s": {
                "type": "numeric",
                "score": 1.31,
                "d": 0.18,
                "threshold": 0.137,
                "window": "7d",
                "n": 14000,
                "p_value_iid": 1e-9,
            }
        },
        "windows": {"7d": {"tier": "retrain", "n": 14000, "status": "judged"}},
        "locations": {
            "F9": {"status": "new_location", "n": 410, "labels": 0, "boxes": 11, "days": 2}
        },
        "retrain": {
            "state": "requested",
            "dag_run_id": "drift__trailwatch__v7__e1",
            "outcome": "delivered",
            "error": "",
            "reason": ["gap_s"],
            "episode": 1,
            "budget_left_7d": 0,
            "budget_left_30d": 1,
            "cooldown_until": None,
            "held_by": ["budget"],
            "person_asked": "",
            "acknowledged_by": "",
            "snoozed_until": None,
            "dry_run": False,
        },
        "report": {
            "episode": 1,
            "model_version": "7",
            "link": "runs:/abc/drift/e1/report.html",
            "error": "",
        },
        "alarms": {},
    }
    store.close()


@pytest.mark.parametrize(
    ("score", "status", "state"), [(0.4, "warn", "warn"), (1.31, "warn", "drift")]
)
def test_drift_is_no_failure(api: httpx.Client, url: str, score: float, status: str, state: str):
    written(url, score)[0].close()
    answer = api.get("/health/drift")
    told = answer.json()
    assert (answer.status_code, told["status"], told["state"]) == (200, status, state)


def test_without_a_state_it_is_blind_and_nothing_else_is_unwell(api: httpx.Client):
    answer = api.get("/health/drift")
    assert answer.status_code == 503
    told = answer.json()
    assert (told["version"], told["status"], told["state"]) == (1, "fail", "blind")
    assert "python -m monitoring" in told["detail"]
    assert api.get("/health/ready").status_code == 200
    assert api.get("/health/live").status_code == 200
    assert api.get("/metrics").status_code == 200


def test_a_stale_evaluation_is_blind(api: httpx.Client, url: str):
    written(url, 0.2, age_s=179)[0].close()
    assert api.get("/health/drift").status_code == 200


def test_an_older_evaluation_is_stale(api: httpx.Client, url: str):
    written(url, 0.2, age_s=200)[0].close()
    answer = api.get("/health/drift")
    assert answer.status_code == 503
    told = answer.json()
    assert told["state"] == "blind"
    assert "old" in told["detail"]
    assert told["model_version"] == "7"  # what is known is told


@pytest.mark.parametrize("missing", ["reference", "evaluation"])
def test_without_reference_or_evaluation_it_is_blind(api: httpx.Client, url: str, missing: str):
    store, _ = written(url)
    with store.change() as step:
        setattr(step.monitor, missing, {} if missing == "reference" else None)
    store.close()
    answer = api.get("/health/drift")
    assert answer.status_code == 503
    assert answer.json()["state"] == "blind"


def test_an_alarm_and_a_person_asked_warn_when_there_is_no_drift(api: httpx.Client, url: str):
    store, at = written(url, 0.2)
    with store.change() as step:
        step.monitor.evaluation["locations"] = {}
        calm = p.Reading(at, "7", {"gap_s": 0.2}, {})
        step.apply(p.evaluated(step.monitor.policy, calm))
    assert api.get("/health/drift").json()["status"] == "pass"
    with store.change() as step:
        step.alarm("airflow", "wrong password")
    told = api.get("/health/drift").json()
    assert (told["status"], told["state"]) == ("warn", "ok")
    assert told["alarms"]["airflow"]["detail"] == "wrong password"
    store.close()


def test_the_history_is_told_in_pages(api: httpx.Client, url: str):
    store, _ = written(url)
    first = api.get("/health/drift/history", params={"limit": 2}).json()
    assert [event["kind"] for event in first["events"]] == ["evaluation", "requested"]
    assert first["events"][1]["facts"] == {"episode": 1, "reason": ["gap_s"]}
    more = api.get("/health/drift/history", params={"limit": 100, "before": first["next"]}).json()
    assert [event["kind"] for event in more["events"]] == ["opened", "level", "champion"]
    assert more["next"] is None
    only = api.get("/health/drift/history", params={"kind": ["level", "opened"]}).json()
    assert [event["kind"] for event in only["events"]] == ["opened", "level"]
    assert api.get("/health/drift/history", params={"limit": 0}).status_code == 422
    store.close()


def test_a_person_asks_for_a_retraining_once(api: httpx.Client, url: str):
    store, _ = written(url, 0.2)
    answer = api.post("/admin/drift/retrain")
    assert answer.status_code == 200
    told = answer.json()["retrain"]
    assert told["state"] == "requested"
    assert told["dag_run_id"] == "drift__trailwatch__v7__e1"
    assert told["reason"] == ["asked for by 127.0.0.1"]
    [asked] = store.requests("pending")
    assert asked.conf["manual"] and asked.conf["force"]
    again = api.post("/admin/drift/retrain")
    assert again.status_code == 409
    assert again.headers["content-type"] == "application/problem+json"
    assert again.json()["type"] == "urn:trailwatch:problem:refused"
    assert len(store.requests()) == 1
    store.close()


def test_many_people_at_once_ask_for_one_retraining(api: httpx.Client, url: str):
    store, _ = written(url, 0.2)
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: api.post("/admin/drift/retrain").status_code, range(8)))
    assert sorted(statuses) == [200] + [409] * 7
    assert len(store.requests()) == 1
    store.close()


def test_people_snooze_acknowledge_and_rehearse(api: httpx.Client, url: str):
    store, at = written(url, 0.2)
    told = api.post("/admin/drift/snooze", json={"days": 3}).json()["retrain"]
    assert told["snoozed_until"] is not None
    assert policy_of(store).snoozed_until_us > at + 2 * DAY
    told = api.post("/admin/drift/snooze", json={"days": 0}).json()["retrain"]
    assert told["snoozed_until"] is None
    assert api.post("/admin/drift/dry-run", json={"on": True}).json()["retrain"]["dry_run"]
    assert api.post("/admin/drift/retrain").status_code == 409
    assert not api.post("/admin/drift/dry-run", json={"on": False}).json()["retrain"]["dry_run"]
    with store.change() as step:
        step.apply(p.retrain(step.monitor.policy, "bob", step.now_us))
        step.apply(p.finished(step.monitor.policy, 1, False, step.now_us))
    assert "episode 1" in api.get("/health/drift").json()["retrain"]["person_asked"]
    told = api.post("/admin/drift/ack").json()["retrain"]
    assert (told["person_asked"], told["acknowledged_by"]) == ("", "127.0.0.1")
    store.close()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("snooze", {"days": 31}),
        ("snooze", {"days": -1}),
        ("snooze", {}),
        ("dry-run", {"on": "perhaps"}),
        ("dry-run", {"on": True, "off": True}),
    ],
    ids=["too long", "negative", "nothing", "no truth", "more"],
)
def test_what_cannot_be_meant_is_refused(
    api: httpx.Client, url: str, path: str, body: dict[str, object]
):
    store, _ = written(url, 0.2)
    before = policy_of(store)
    answer = api.post(f"/admin/drift/{path}", json=body)
    assert answer.status_code == 422
    assert policy_of(store) == before
    store.close()


@pytest.mark.parametrize("path", ["ack", "retrain"])
def test_without_a_monitor_nobody_can_be_told(api: httpx.Client, path: str):
    answer = api.post(f"/admin/drift/{path}")
    assert answer.status_code == 503
    assert answer.json()["type"] == "urn:trailwatch:problem:store-down"


def test_who_may_do_what(settings: Settings, url: str):
    written(url, 0.2)[0].close()
    keys = {name: make_key(name, name) for name in ("read", "score", "admin")}
    entries = ",".join(entry for _, entry in keys.values())
    with served(replace(settings, api_keys=entries)) as (client, _):

        def status(method: str, path: str, name: str | None) -> int:
            headers = {} if name is None else {"Authorization": f"Bearer {keys[name][0]}"}
            return client.request(method, path, headers=headers).status_code

        for path in ("/health/drift", "/health/drift/history"):
            assert status("GET", path, "read") == 200
            assert status("GET", path, "score") == 403
            assert status("GET", path, None) == 401
        for path in ("ack", "retrain", "snooze", "dry-run"):
            assert status("POST", f"/admin/drift/{path}", "read") == 403
            assert status("POST", f"/admin/drift/{path}", None) == 401
        assert status("POST", "/admin/drift/ack", "admin") == 200


def samples(api: httpx.Client) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(api.get("/metrics").text)
    return {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }


def test_metrics_tell_scores_states_and_the_outbox(api: httpx.Client, url: str):
    blind = samples(api)
    assert blind[("drift_state", (("state", "blind"),))] == 1
    store, at = written(url)
    told = samples(api)
    column = (("feature", "gap_s"), ("window", "7d"))
    assert told[("drift_score", column)] == 1.31
    assert told[("drift_threshold", column)] == 0.137
    assert told[("drift_state", (("state", "requested"),))] == 1
    assert sum(value for (name, _), value in told.items() if name == "drift_state") == 1
    assert told[("drift_window_events", (("window", "7d"),))] == 14000
    assert told[("drift_last_evaluation_timestamp_seconds", ())] == pytest.approx(at / 1e6)
    assert told[("drift_alarms_total", ())] == 1
    requested = (("outcome", "requested"), ("reason", "drift"))
    assert told[("retrain_requests_total", requested)] == 1
    assert told[("retrain_outbox_pending", ())] == 1
    assert 0 <= told[("retrain_outbox_oldest_seconds", ())] < 60
    with store.change() as step:
        step.update("drift__trailwatch__v7__e1", outcome="success", delivered_us=step.at_us)
    told = samples(api)
    assert told[("retrain_outbox_pending", ())] == 0
    assert told[("retrain_outbox_oldest_seconds", ())] == 0
    for outcome in ("requested", "delivered", "success"):
        labels = (("outcome", outcome), ("reason", "drift"))
        assert told[("retrain_requests_total", labels)] == 1
    store.close()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate()]


def test_a_monitor_inside_ends_with_the_service(settings: Settings):
    before = threads()
    with served(replace(settings, monitor="inside")) as (client, _):
        assert threads().count("watcher") == before.count("watcher") + 2
        until = time.monotonic() + 60
        while "no champion" not in (told := client.get("/health/drift").json()["detail"]):
            assert time.monotonic() < until, told
            time.sleep(0.2)
        assert client.get("/health/drift").status_code == 503
    assert threads().count("watcher") == before.count("watcher")


def test_scans_are_logged_with_what_monitoring_reads(
    tmp_path: Path, bundle_folder: Path, settings: Settings
):
    rows = [
        {
            "event_id": i,
            "location_id": 101,
            "epc_code": f"001.8804823.1293291.010004.20250701.{i:09d}",
            "event_type": "Aggregation",
            "event_time": "2025-07-01T08:30:00Z",
        }
        for i in range(1, 4)
    ]
    with served(replace(settings, bundle=str(bundle_folder))) as (client, app):
        assert isinstance(app, FastAPI)
        assert client.post("/score", json={"data": rows}).status_code == 200
        assert client.post("/score", json={"data": rows}).status_code == 200
        rules = "/api/manager/export-and-analyze-async"
        later = [{**row, "event_id": 10 + row["event_id"]} for row in rows]
        assert client.post(rules, json={"data": later}).status_code == 200
    log = open_log(settings.log_url)
    told = log.watched(0, 100)
    log.close()
    assert [one.monitored is not None for one in told] == [True] * 3 + [False] * 3
    columns = np.frombuffer(b"".join(one.monitored or b"" for one in told), "<f4")
    columns = columns.reshape(3, len(MONITORED))
    names = [column.name for column in MONITORED]
    assert (columns[:, names.index("hour")] == 8.5).all()
    assert (columns[:, names.index("box_size")] == 3).all()
    assert np.isnan(columns[:, names.index("gap_h")]).all()
    probabilities = columns[:, [i for i, n in enumerate(names) if n.startswith("p_")]]
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
