"""The ledger only grows, notices what was done to it, and lets one at a time move a champion."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from itertools import count
from pathlib import Path

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from pipelines.promotion import moves
from pipelines.promotion.ledger import Entry, Kind, Ledger, LedgerError, default_url
from tests.logbook.logged import postgres_server

ROOT = Path(__file__).parents[2]
_files = count(1)


@pytest.fixture(scope="module")
def server():
    with postgres_server() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres"])
def url(request, tmp_path) -> str:
    """The URL of a ledger of its own."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / f'ledger{next(_files)}.db'}"
    return request.getfixturevalue("server").url()


def promoted(ledger: Ledger, target: str, origin: str = "", model: str = "m") -> Entry:
    return ledger.append(model, Kind.PROMOTE, who="ann", why="new", origin=origin, target=target)


def direct(url: str, *statements: str) -> None:
    """Run statements around the ledger."""
    engine = sa.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    try:
        with engine.begin() as connection:
            for statement in statements:
                connection.exec_driver_sql(statement)
    finally:
        engine.dispose()


def test_entries_come_back_as_they_were_written_and_in_their_order(url):
    ledger = Ledger(url)
    figures = {"gates": [{"name": "map", "figure": -0.25, "note": "é’s"}], "refused_by": ["map"]}
    first = promoted(ledger, "1")
    second = ledger.append(
        "m", Kind.REFUSED, who="bo", why="§ 2", origin="1", target="2", decision=figures
    )
    other = promoted(ledger, "7", model="another")
    assert Ledger(url).entries("m") == [first, second]
    assert ledger.entries("another") == [other]
    assert (first.number, second.number, other.number) == (1, 2, 1)
    assert second.previous == first.hash and first.previous == ""
    assert ledger.entries("m")[1].decision == figures


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("UPDATE promotion_ledger SET who = 'eve'", "append-only"),
        ("DELETE FROM promotion_ledger", "append-only"),
        ("INSERT INTO promotion_ledger SELECT * FROM promotion_ledger WHERE number = 1", "not the"),
        (
            "INSERT INTO promotion_ledger SELECT model, 4, at, kind, who, why, origin, target, "
            "settles, decision, hash, 'x' FROM promotion_ledger WHERE number = 2",
            "not the next",
        ),
        (
            "INSERT INTO promotion_ledger SELECT model, 3, at, kind, who, why, origin, target, "
            "settles, decision, 'forged', 'x' FROM promotion_ledger WHERE number = 2",
            "not the next",
        ),
    ],
    ids=["update", "delete", "again", "gap", "forged"],
)
def test_the_database_itself_refuses_to_change_the_past(url, statement, says):
    ledger = Ledger(url)
    kept = [promoted(ledger, "1"), promoted(ledger, "2", "1")]
    with pytest.raises(sa.exc.DBAPIError, match=says):
        direct(url, statement)
    assert ledger.entries("m") == kept


def test_no_row_is_replaced_and_no_table_emptied(tmp_path, server):
    file = tmp_path / "ledger.db"
    on_server, on_file = server.url(), f"sqlite:///{file}"
    for url in (on_file, on_server):
        promoted(Ledger(url), "1")
    with sqlite3.connect(file) as connection, pytest.raises(sqlite3.DatabaseError, match="not the"):
        connection.execute("INSERT OR REPLACE INTO promotion_ledger SELECT * FROM promotion_ledger")
    with pytest.raises(sa.exc.DBAPIError, match="append-only"):
        direct(on_server, "TRUNCATE promotion_ledger")


@pytest.mark.parametrize(
    "change", ["target = '9'", "decision = '{}'", "at = '2020'", "settles = 1"]
)
def test_a_change_around_the_triggers_is_noticed(tmp_path, change):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = Ledger(url)
    promoted(ledger, "1")
    ledger.append("m", Kind.HELD, who="bo", target="2", decision={"a": 1})
    promoted(ledger, "3", "1")
    direct(url, "DROP TRIGGER promotion_ledger_update")
    direct(url, f"UPDATE promotion_ledger SET {change} WHERE number = 2")
    with pytest.raises(LedgerError, match="entry 2 of 'm' is not what was written"):
        ledger.entries("m")


def test_an_entry_that_was_taken_out_is_noticed(tmp_path):
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    ledger = Ledger(url)
    for target in ("1", "2", "3"):
        promoted(ledger, target)
    direct(url, "DROP TRIGGER promotion_ledger_delete")
    direct(url, "DELETE FROM promotion_ledger WHERE number = 2")
    with pytest.raises(LedgerError, match="entry 3"):
        ledger.entries("m")


def test_many_writers_make_one_chain(url):
    ledgers = [Ledger(url) for _ in range(4)]

    def write(ledger: Ledger) -> None:
        for i in range(5):
            promoted(ledger, str(i))

    threads = [threading.Thread(target=write, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.number for entry in ledgers[0].entries("m")] == list(range(1, 21))


def test_one_at_a_time_is_alone(url):
    one, other = Ledger(url), Ledger(url)
    with (
        one.alone("m"),
        pytest.raises(LedgerError, match="another promotion"),
        other.alone("m", 0.2),
    ):
        pass
    with other.alone("m", 0.2):
        promoted(one, "1")  # who is not alone may still write decisions that move nothing


HOLD = """
import sys, time
from pipelines.promotion.ledger import Ledger
with Ledger(sys.argv[1]).alone("m"):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_killed_process_does_not_stay_alone(url):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, url],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        ledger = Ledger(url)
        with pytest.raises(LedgerError), ledger.alone("m", 0.2):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with ledger.alone("m", 10):
            pass
    finally:
        holder.kill()
        holder.wait()


def test_an_address_that_is_no_database_is_refused_without_its_password():
    for url in ("redis://ann:secret@host/0", "sqlite://", "sqlite:///:memory:", "nonsense"):
        with pytest.raises(LedgerError, match="sqlite:///<file> or postgresql") as told:
            Ledger(url)
        assert "secret" not in str(told.value)
    with pytest.raises(LedgerError) as told:
        Ledger("postgresql://ann:secret@127.0.0.1:1/none")
    assert "secret" not in str(told.value)
    assert "TRAILWATCH_LEDGER" in str(told.value)


def test_the_ledger_stands_with_mlflow_unless_named(tmp_path, monkeypatch):
    monkeypatch.delenv("TRAILWATCH_LEDGER", raising=False)
    home = tmp_path / "home"
    beside = default_url(f"sqlite:///{tmp_path / 'mlflow.db'}", home)
    assert beside == f"sqlite:///{tmp_path / 'ledger.db'}"
    assert default_url("postgresql://h/mlflow", home) == "postgresql://h/mlflow"
    assert default_url("http://h:5000", home) == f"sqlite:///{home / 'ledger.db'}"
    monkeypatch.setenv("TRAILWATCH_LEDGER", "postgresql://h/elsewhere")
    assert default_url("http://h:5000", home) == "postgresql://h/elsewhere"


# What the ledger says of the champion


def entry(number: int, kind: Kind, target: str, settles: int = 0) -> Entry:
    return Entry("m", number, "", kind, "ann", "", "", target, settles, {}, "")


@given(st.lists(st.one_of(st.integers(1, 9), st.just("back"), st.just("refused"), st.just("died"))))
def test_promotions_stack_up_and_rollbacks_take_them_off(steps):
    """Against a stack; what was refused or died half-way leaves no trace in it."""
    entries = [entry(1, Kind.FOUND, "0")]
    stack = ["0"]
    for step in steps:
        number = len(entries) + 1
        if step == "refused":
            entries.append(entry(number, Kind.REFUSED, "99"))
        elif step == "died":
            entries.append(entry(number, Kind.PROMOTE, "98"))
            entries.append(entry(number + 1, Kind.ABANDONED, "98", number))
        elif step == "back":
            target = moves.before(entries)
            assert target == (stack[-2] if len(stack) > 1 else "")
            if target:
                stack.pop()
                entries.append(entry(number, Kind.ROLLBACK, target))
                entries.append(entry(number + 1, Kind.DONE, target, number))
        else:
            stack.append(f"{step}.{number}")
            entries.append(entry(number, Kind.PROMOTE, stack[-1]))
            assert moves.unfinished(entries) == entries[-1]
            entries.append(entry(number + 1, Kind.DONE, stack[-1], number))
        assert moves.champion_of(entries) == stack[-1]
        assert moves.unfinished(entries) is None
