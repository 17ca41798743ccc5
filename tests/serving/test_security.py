"""Who may ask, how much, and that every route says so."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
from fastapi import APIRouter, FastAPI, WebSocket
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import HTTPConnection

from serving.limits import Buckets, Slots
from serving.problems import Problem
from serving.security import (
    PUBLIC,
    Gate,
    allow,
    is_loopback,
    make_key,
    parse_keys,
    undecided,
)
from serving.settings import Settings, SettingsError

KEY, ENTRY = make_key("backend", "score+read")
OTHER, OTHER_ENTRY = make_key("analyst", "feedback")


def asks(client: str | None = "127.0.0.1", kind: str = "http", **headers: str) -> HTTPConnection:
    names = {"host": "localhost:8000", **{k.replace("_", "-"): v for k, v in headers.items()}}
    raw = [(name.encode(), value.encode()) for name, value in names.items()]
    return HTTPConnection(
        {"type": kind, "client": client and (client, 1234), "headers": raw, "path": "/"}
    )


def gate(keys: str = "", **settings: object) -> Gate:
    return Gate(Settings(api_keys=keys, **settings))  # type: ignore[arg-type]


def refused(of: Gate, connection: HTTPConnection, scope: str = "score") -> int:
    with pytest.raises(Problem) as problem:
        of.admit(connection, scope)
    return problem.value.status_code


def test_a_key_opens_its_scopes_and_no_other():
    doors = gate(f"{ENTRY}, {OTHER_ENTRY}")
    me = asks(authorization=f"Bearer {KEY}", client="203.0.113.9", host="trailwatch.example")
    assert doors.admit(me, "score").name == doors.admit(me, "read").name == "backend"
    assert refused(doors, me, "feedback") == refused(doors, me, "admin") == 403
    assert doors.admit(asks(authorization=f"bearer {OTHER}"), "feedback").name == "analyst"


@pytest.mark.parametrize(
    "header",
    ["", "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY,
     f"Bearer {hashlib.sha256(KEY.encode()).hexdigest()}", "Bearer \xff"],
    ids=["nothing", "no key", "empty", "basic", "longer", "shorter", "bare", "hash", "no ascii"],
)  # fmt: skip
def test_without_a_valid_key_nothing_is_open_even_from_here(header: str):
    assert refused(gate(ENTRY), asks(authorization=header)) == 401


def test_the_refusal_says_how_to_ask():
    with pytest.raises(Problem) as problem:
        gate(ENTRY).admit(asks(), "score")
    assert problem.value.headers["WWW-Authenticate"].startswith("Bearer")


def test_a_browser_s_websocket_may_offer_its_key_as_a_subprotocol():
    doors = gate(ENTRY)
    offer = f"trailwatch, bearer.{KEY}"
    assert doors.admit(asks(kind="websocket", sec_websocket_protocol=offer), "read")
    assert refused(doors, asks(sec_websocket_protocol=offer), "read") == 401


def test_without_keys_only_this_machine_may_ask():
    doors = gate()
    for client in ("127.0.0.1", "::1", None):
        assert doors.admit(asks(client=client), "admin")
    assert refused(doors, asks(client="192.0.2.7")) == 403


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "", "127.0.0.1.evil.example"]
)
def test_without_keys_a_name_that_a_web_page_gave_this_machine_is_refused(host: str):
    assert refused(gate(), asks(host=host)) == 403


@pytest.mark.parametrize(
    ("origin", "fine"),
    [
        ("http://localhost:8000", True),
        ("http://evil.example", False),
        ("http://localhost:3000", False),
        ("null", False),
    ],
)
@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_without_keys_pages_of_other_sites_are_refused(origin: str, fine: bool, kind: str):
    if fine:
        assert gate().admit(asks(origin=origin, kind=kind), "score")
    else:
        assert refused(gate(), asks(origin=origin, kind=kind)) == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "trailwatch.example", ""])
def test_an_open_host_without_keys_is_refused_at_the_start(host: str):
    with pytest.raises(SettingsError, match="API_KEYS"):
        gate(host=host)
    assert gate(ENTRY, host=host).keys


def test_loopback_is_told_from_other_hosts():
    assert all(map(is_loopback, ["localhost", "127.0.0.1", "127.8.9.1", "::1", "[::1]"]))
    assert not any(map(is_loopback, ["10.0.0.1", "localhost.evil.example", "0.0.0.0", "::"]))


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "a:score",
        f"a:score:{'0' * 63}",
        f"a:everything:{'0' * 64}",
        f"a:score+:{'0' * 64}",
        f"a b:score:{'0' * 64}",
        f"{ENTRY},{ENTRY}",
    ],
)
def test_entries_that_cannot_be_read_are_refused_without_telling_hashes(text: str):
    with pytest.raises(SettingsError) as error:
        parse_keys(text)
    assert "0" * 20 not in str(error.value) and ENTRY[-20:] not in str(error.value)


def test_the_command_makes_a_key_and_its_entry():
    command = [sys.executable, "-m", "serving.security"]
    done = subprocess.run([*command, "ops", "read+admin"], capture_output=True, text=True)
    key, entry = (line.split(": ")[1].strip() for line in done.stdout.splitlines())
    assert gate(entry).admit(asks(authorization=f"Bearer {key}"), "admin").name == "ops"
    assert key not in entry
    wrong = subprocess.run([*command, "ops", "all"], capture_output=True, text=True)
    assert wrong.returncode == 2 and "scopes of score" in wrong.stderr


def test_every_kind_of_route_without_a_decision_is_found():
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    router = APIRouter(dependencies=[allow("read")])
    inner = APIRouter()

    @app.get("/bare")
    @app.get("/open", dependencies=[PUBLIC])
    @router.get("/kept")
    @inner.get("/inner")
    async def answer() -> None: ...

    @app.websocket("/bare-socket")
    @app.websocket("/kept-socket", dependencies=[allow("read")])
    async def socket(websocket: WebSocket) -> None: ...

    app.include_router(router)
    app.include_router(inner, prefix="/deep")
    app.mount("/mounted", FastAPI())
    app.add_route("/plain", answer)
    assert sorted(undecided(app)) == [
        "/bare", "/bare-socket", "/deep/inner", "/mounted", "/plain"
    ]  # fmt: skip


def test_an_unknown_scope_is_a_mistake_of_ours():
    with pytest.raises(ValueError, match="'root'"):
        allow("root")


def wait_asked(buckets: Buckets) -> int | None:
    """Seconds to wait, None where there was a token."""
    try:
        buckets.take("x")
    except Problem as problem:
        return int(problem.headers["Retry-After"]) if problem.status_code == 429 else -1
    return None


@given(st.integers(1, 120), st.lists(st.floats(0, 5), max_size=60))
def test_a_bucket_never_gives_more_than_its_rate(per_minute: int, waits: list[float]):
    now = 0.0
    buckets = Buckets(per_minute, lambda: now)
    given_at: list[float] = []
    for wait in waits:
        now += wait
        retry = wait_asked(buckets)
        if retry is None:
            given_at.append(now)
        else:
            assert 1 <= retry <= 60 / per_minute + 1
    for i, start in enumerate(given_at):
        for j, end in enumerate(given_at[i:], i):
            assert j - i + 1 <= per_minute + (end - start) * per_minute / 60 + 1e-6


def test_who_waits_as_told_is_served_and_others_are_not_held_up():
    now = 0.0
    buckets = Buckets(2, lambda: now)
    buckets.take("x")
    buckets.take("x")
    with pytest.raises(Problem) as problem:
        buckets.take("x")
    buckets.take("y")
    now += int(problem.value.headers["Retry-After"])
    buckets.take("x")


def test_a_flood_of_callers_does_not_fill_the_memory():
    buckets = Buckets(1)
    for i in range(10_050):
        buckets.take(str(i))
    assert len(buckets._filled) == 10_000


def test_the_rate_is_that_of_the_key_not_of_the_address():
    doors = gate(f"{ENTRY},{OTHER_ENTRY}", requests_per_minute=1)
    mine, other = (asks(authorization=f"Bearer {key}") for key in (KEY, OTHER))
    doors.admit(mine, "score")
    assert refused(doors, mine) == 429
    doors.admit(other, "feedback")
    assert [refused(doors, asks()) for _ in range(2)] == [401, 429]


def test_places_are_given_back_also_after_an_error():
    slots = Slots(1)

    def fail() -> None:
        with slots.one():
            with pytest.raises(Problem) as problem, slots.one():
                pass
            assert problem.value.status_code == 503
            assert problem.value.headers["Retry-After"] == "1"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with slots.one():
        assert slots.taken == 1
