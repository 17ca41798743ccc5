"""The contract of the prediction log, on real SQLite and on real PostgreSQL."""

from __future__ import annotations

import sqlite3
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logbook import Entry, Feedback, Kind, LogError, PredictionLog, Record, Request
from logbook.opened import open_log
from logbook.tables import VERSION
from tests.logbook.logged import Server, entry, postgres_server, scan, verdict


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:{tmp_path / 'state' / 'log.db'}"
    return request.getfixturevalue("server").url()


@pytest.fixture
def log(url: str) -> Iterator[PredictionLog]:
    log = open_log(url)
    yield log
    log.close()


def told(record: Record) -> list[tuple[int, str, Kind, float]]:
    return [(when, receipt, v.kind, v.score[1]) for when, receipt, v in record.verdicts]


# Appending


def test_what_is_appended_is_read_back(log: PredictionLog):
    scans = [scan(i) for i in (5, 3, 2010, 4)]
    one = entry("a", scans, at=17)
    log.append(one)
    request, records = log.request("a")
    assert request == one.request
    assert [record.scan for record in records] == scans
    assert [record.given for record in records] == one.verdicts
    assert [record.latest for record in records] == one.verdicts
    assert [record.id for record in records] == sorted(record.id for record in records)
    assert {(record.receipt, record.received_us) for record in records} == {("a", 17)}
    assert log.given(scans) == [("a", said) for said in one.verdicts]
    assert log.given([scan(9), scans[1]]) == [None, ("a", one.verdicts[1])]
    assert log.since(0, 10) == records
    assert log.request("b") is None


def test_what_monitoring_reads_of_a_scan(log: PredictionLog):
    far = scan(3, location_id="a place with a very long name " * 9)
    blobs = [bytes([i]) * 104 for i in range(2)]
    log.append(entry("a", [scan(1), far], at=17, monitored=blobs))
    log.append(entry("b", [scan(1), scan(4), scan(5)], at=18, monitored=[b"x", None, b"y"]))
    log.append(entry("c", [scan(6)], at=19, shadow=[(scan(6), verdict(Kind.SHADOW, 9))]))
    told = log.watched(0, 10)
    assert [(t.time_us, t.lot, t.location_id) for t in told] == [
        (s.time_us, s.lot, s.location_id) for s in (scan(1), far, scan(4), scan(5), scan(6))
    ]
    assert [t.monitored for t in told] == [*blobs, None, b"y", None]
    assert [t.received_us for t in told] == [17, 17, 18, 18, 19]
    assert {t.digest for t in told} == {"d" * 64}
    assert [t.id for t in told] == [record.id for record in log.since(0, 10)]
    assert log.watched(told[1].id, 2) == told[2:4]


def test_as_many_monitored_rows_as_scans_or_none(log: PredictionLog):
    with pytest.raises(ValueError, match="2 scans with 1 monitored"):
        log.append(entry("a", [scan(1), scan(2)], monitored=[b""]))


def test_a_request_without_scans_is_known(log: PredictionLog):
    log.append(entry("empty", []))
    assert log.request("empty") == (entry("empty", []).request, [])


def test_an_entry_sent_again_changes_nothing(log: PredictionLog):
    log.append(entry("old", [scan(0)]))
    one = entry(
        "a",
        [scan(1), scan(2)],
        revised=[(scan(0), verdict(Kind.REVISED))],
        shadow=[(scan(1), verdict(Kind.SHADOW))],
    )
    log.append(one)
    before = log.figures(), log.since(0, 10)
    log.append(one)
    assert (log.figures(), log.since(0, 10)) == before


def test_the_same_scans_in_another_request_keep_their_first_answer(log: PredictionLog):
    first = entry("a", [scan(1), scan(2)])
    assert log.append(first)
    other = [verdict(level=9.0)] * 3
    assert not log.append(Entry(Request("b", 5, "/score"), [scan(2), scan(3), scan(1)], other))
    assert log.append(entry("c", [scan(4)]))
    assert log.given([scan(1), scan(2), scan(3)]) == [
        ("a", first.verdicts[0]),
        ("a", first.verdicts[1]),
        ("b", other[0]),
    ]
    _, brought = log.request("b")
    assert [record.scan for record in brought] == [scan(3)]
    assert log.figures()["verdicts"]["given"] == 4


@pytest.mark.parametrize("part", [slice(0, 20), slice(30, 50), slice(10, 40)])
def test_an_entry_completes_a_part_of_it(log: PredictionLog, part: slice):
    scans = [scan(i) for i in range(50)]
    whole = entry("a", scans)
    log.append(replace(whole, scans=scans[part], verdicts=whole.verdicts[part]))
    log.append(whole)
    _, records = log.request("a")
    assert sorted(r.scan.time_us for r in records) == [s.time_us for s in scans]
    assert log.given(scans) == [("a", said) for said in whole.verdicts]
    assert log.figures()["scans"] == 50
    assert log.figures()["requests"] == 1


def test_of_a_scan_twice_in_a_request_the_first_counts(log: PredictionLog):
    said = [verdict(level=1.0), verdict(level=2.0)]
    log.append(Entry(Request("a", 0, "/score"), [scan(1), scan(1)], said))
    assert log.given([scan(1)]) == [("a", said[0])]
    assert log.figures()["verdicts"]["given"] == 1


def test_scans_differ_by_each_part_of_their_identity(log: PredictionLog):
    one = scan(1)
    others = [
        one._replace(epc="x"),
        one._replace(event_id=77),
        one._replace(event_id=-1),
        one._replace(location_id="01"),
        one._replace(op=2),
        one._replace(time_us=one.time_us + 1),
    ]
    log.append(entry("a", [one, *others]))
    assert len(log.since(0, 10)) == 7
    log.append(entry("b", [one._replace(lot=9, file_id=9)]))  # neither of these is part of it
    assert len(log.since(0, 10)) == 7


def test_revised_and_shadow_verdicts_join_their_scans_oldest_first(log: PredictionLog):
    log.append(entry("a", [scan(1), scan(2)], at=10, shadow=[(scan(2), verdict(Kind.SHADOW, 3))]))
    log.append(
        entry(
            "b",
            [scan(3)],
            at=20,
            revised=[(scan(1), verdict(Kind.REVISED, 4)), (scan(3), verdict(Kind.REVISED, 5))],
            shadow=[(scan(1), verdict(Kind.SHADOW, 6))],
        )
    )
    first, second, third = log.since(0, 10)
    level = [verdict(level=n).score[1] for n in range(7)]
    assert told(first)[1:] == [
        (20, "b", Kind.REVISED, level[4]),
        (20, "b", Kind.SHADOW, level[6]),
    ]
    assert first.latest.score[1] == level[4]
    assert first.given.kind == Kind.GIVEN
    assert told(second)[1:] == [(10, "a", Kind.SHADOW, level[3])]
    assert second.latest == second.given
    assert told(third)[1:] == [(20, "b", Kind.REVISED, level[5])]
    assert log.figures()["verdicts"] == {"given": 3, "revised": 2, "shadow": 2}


def test_verdicts_on_scans_that_are_not_logged_are_left_out(log: PredictionLog):
    log.append(entry("a", [scan(1)], revised=[(scan(2), verdict(Kind.REVISED))]))
    assert [told(record)[0][2] for record in log.since(0, 10)] == [Kind.GIVEN]
    assert log.figures()["verdicts"]["revised"] == 0


@pytest.mark.parametrize(
    "wrong",
    [
        Entry(Request("a", 0, "/score"), [scan(1)], []),
        Entry(Request("a", 0, "/score"), [scan(1)], [verdict(Kind.REVISED)]),
        entry("a", [scan(1)], shadow=[(scan(1), verdict(Kind.REVISED))]),
        Entry(Request("a", 0, "/score"), [scan(1)], [verdict(score=(1.0,))]),
        Entry(Request("a", 0, "/score"), [scan(1)], [verdict(score=(1e300,) * 5)]),
        entry("a", [scan(1, event_id=2**63)]),
        entry("a", [scan(1, file_id=2**63)]),
        entry("a" * 200, [scan(1)]),
    ],
)
def test_an_entry_that_does_not_fit_is_refused_whole(log: PredictionLog, wrong: Entry):
    with pytest.raises(ValueError):
        log.append(wrong)
    assert log.figures()["requests"] == log.figures()["scans"] == 0


# What comes back


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    numbers=st.lists(st.integers(0, 2**32 - 1), min_size=15, max_size=15),
)
def test_float32_come_back_bit_for_bit(log: PredictionLog, numbers: list[int]):
    floats = struct.unpack("<15f", struct.pack("<15I", *(_quiet(one) for one in numbers)))
    said = verdict(score=floats[:5], model=floats[5:10], rules=floats[10:])
    mine = scan(log.figures()["last_id"] + 1)
    log.append(Entry(Request(f"r{mine.time_us}", 0, "/score"), [mine], [said]))
    [(_, back)] = log.given([mine])
    assert struct.pack("<15f", *back.score, *back.model, *back.rules) == struct.pack(
        "<15f", *floats
    )


def _quiet(bits: int) -> int:
    """Signalling NaNs become quiet as soon as Python holds them."""
    return bits | 0x0040_0000 if bits & 0x7F80_0000 == 0x7F80_0000 and bits & 0x7F_FFFF else bits


ODD_TEXTS = [
    "",
    " ",
    "'; DROP TABLE scans; --",
    "a\"b'c`d\\e%s?{}",
    "\x00",
    "\x1a0;\x1a\x1a#",
    "\t\r\n\x7f\x1b[0m",
    "가나다 ÅÅ 🚚 \u202e",
    "\ud800 alone",
    "x" * 100_000,
    "x" * 99_999 + "y",
    "\x00" * 100 + "z",
    "가" * 151,
]


def test_odd_texts_come_back_as_they_were(log: PredictionLog):
    scans = [scan(i, epc=text) for i, text in enumerate(ODD_TEXTS)]
    scans += [scan(50 + i, location_id=text) for i, text in enumerate(ODD_TEXTS)]
    said = [verdict(evidence=text, source=text[:50], confidence=text[:9]) for text in ODD_TEXTS] * 2
    request = Request("a", 1, ODD_TEXTS[7], ODD_TEXTS[8], degraded=True)
    log.append(Entry(request, scans, said))
    log.append(Entry(request, scans, said))
    back, records = log.request("a")
    assert back == request
    assert [record.scan for record in records] == scans
    assert [record.given for record in records] == said
    for text in ODD_TEXTS:
        assert {record.scan.epc for record in log.trail(text)} == {text}


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts=st.lists(st.text(max_size=200), min_size=2, max_size=2, unique=True))
def test_any_text_names_its_own_trail(log: PredictionLog, texts: list[str]):
    after = log.figures()["last_id"]
    log.append(entry(f"r{after}", [scan(after + i, epc=text) for i, text in enumerate(texts)]))
    for text in texts:
        assert {record.scan.epc for record in log.trail(text)} == {text}


def test_numbers_of_any_kind_are_plain_when_they_come_back(log: PredictionLog):
    import numpy as np

    from trail.scan import Op

    odd = scan(1, op=Op.SALE, event_id=np.int64(7), time_us=np.int64(2**62), lot=np.int64(-(2**63)))
    log.append(entry("a", [odd]))
    [record] = log.since(0, 10)
    assert record.scan == odd
    assert type(record.scan.op) is int


# Reading


def test_a_trail_is_by_event_time(log: PredictionLog):
    scans = [scan(1, epc="e", time_us=time) for time in (30, 10, 20)]
    log.append(entry("a", scans[:2]))
    log.append(entry("b", [*scans[2:], scan(2)]))
    assert [record.scan.time_us for record in log.trail("e")] == [10, 20, 30]
    assert log.trail("unknown") == []


def test_an_event_is_the_scan_that_last_came_with_its_id(log: PredictionLog):
    log.append(entry("a", [scan(1, event_id=7), scan(2, event_id=-1)]))
    log.append(entry("b", [scan(3, event_id=7)]))
    assert log.event(7).scan == scan(3, event_id=7)
    assert log.event(8) is None
    assert log.event(-1) is None
    assert log.event(2**70) is None


def test_lots_before_is_what_was_known_then(log: PredictionLog):
    log.append(entry("a", [scan(i) for i in (1, 1001, 2001, 2)]))
    log.append(entry("b", [scan(3)]))
    ids = {record.scan.time_us % 10_000: record.id for record in log.since(0, 10)}
    lots = [scan(1).lot, scan(2001).lot]
    found = log.lots_before(lots, ids[2])
    assert [record.id for record in found] == [ids[1], ids[2001], ids[2]]
    assert log.lots_before([], 10) == []
    assert log.lots_before([99], 10) == []


def test_since_goes_on_where_it_ended(log: PredictionLog):
    log.append(entry("a", [scan(i) for i in range(5)]))
    log.append(entry("b", [scan(2), *(scan(i) for i in range(5, 9))]))
    seen, last = [], 0
    while records := log.since(last, 2):
        assert len(records) <= 2
        seen += records
        last = records[-1].id
    assert [record.scan for record in seen] == [scan(i) for i in range(9)]
    assert log.figures()["last_id"] == last


def test_waiting_scans_wait_until_they_are_remembered(log: PredictionLog):
    scans = [scan(i, remembered=i % 2 == 0) for i in range(6)]
    log.append(entry("a", scans))
    waiting = log.waiting(10)
    assert [record.scan for record in waiting] == scans[1::2]
    assert log.waiting(1) == waiting[:1]
    assert log.figures()["waiting"] == 3
    log.remembered([waiting[0].id, waiting[0].id])
    log.remembered([waiting[0].id])
    log.remembered([])
    assert log.waiting(10) == waiting[1:]
    assert log.figures()["waiting"] == 2
    log.append(entry("b", [scans[3]._replace(remembered=True), scans[5]._replace()]))
    assert [record.scan for record in log.waiting(10)] == [scans[5]]
    assert log.figures()["waiting"] == 1


def test_figures_agree_with_what_is_there(log: PredictionLog):
    assert log.figures() == {
        "requests": 0,
        "scans": 0,
        "verdicts": {"given": 0, "revised": 0, "shadow": 0},
        "waiting": 0,
        "last_id": 0,
        "feedback": 0,
    }
    log.append(entry("a", [scan(1), scan(2, remembered=False)]))
    log.append(entry("b", [scan(2), scan(3)], revised=[(scan(1), verdict(Kind.REVISED))]))
    log.add_feedback(word())
    assert log.figures() == {
        "requests": 2,
        "scans": 3,
        "verdicts": {"given": 3, "revised": 1, "shadow": 0},
        "waiting": 0,
        "last_id": log.since(0, 9)[-1].id,
        "feedback": 1,
    }


def test_ping_is_content_with_a_log_that_works(log: PredictionLog):
    log.ping()
    assert log.figures()["requests"] == 0


# Retention


def test_forget_takes_what_is_old_and_keeps_feedback(log: PredictionLog):
    log.append(entry("a", [scan(1), scan(2, remembered=False)], at=10))
    log.append(entry("b", [scan(3)], at=20, revised=[(scan(1), verdict(Kind.REVISED))]))
    log.add_feedback(word(event_id=1))
    kept = log.since(2, 10)
    assert log.forget(10) == 0
    assert log.forget(20) == 2
    assert log.forget(20) == 0
    assert log.since(0, 10) == kept
    assert log.request("a") is None
    assert log.trail(scan(1).epc) == []
    assert log.feedback() == [word(event_id=1)]
    figures = log.figures()
    assert (figures["requests"], figures["scans"], figures["waiting"]) == (1, 1, 0)
    assert figures["verdicts"] == {"given": 1, "revised": 0, "shadow": 0}


def test_numbers_are_never_given_again(log: PredictionLog):
    log.append(entry("a", [scan(1), scan(2)], at=10))
    last = log.since(0, 10)[-1].id
    assert log.forget(11) == 2
    assert log.figures()["last_id"] == last
    log.append(entry("b", [scan(1)], at=20))
    assert [record.id for record in log.since(last, 10)] == [last + 1]


def test_forget_takes_many_in_steps(log: PredictionLog, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("logbook.sql._FORGET_AT_ONCE", 3)
    for i in range(5):
        log.append(entry(f"r{i}", [scan(10 * i + k) for k in range(4)], at=i))
    assert log.forget(4) == 16
    assert [record.scan for record in log.since(0, 99)] == [scan(40 + k) for k in range(4)]
    assert log.figures()["requests"] == 1


# Feedback


def word(**other: object) -> Feedback:
    values = {"event_id": 5, "epc": "e", "time_us": 9, "anomaly": "jump", "right": True}
    return Feedback(**{**values, "who": "ann", "why": "seen", "given_us": 100, **other})


def test_feedback_comes_back_by_time(log: PredictionLog):
    words = [
        word(given_us=300),
        word(who="bob", given_us=100, right=False),
        word(anomaly="locErr", given_us=200),
        word(event_id=6, given_us=400, why="'\"\x00 가"),
        word(event_id=-1, given_us=500),
        word(event_id=-1, time_us=10, given_us=600),
        word(event_id=-1, epc="f", given_us=700),
    ]
    assert [log.add_feedback(one) for one in words] == [True] * 7
    assert log.feedback() == sorted(words, key=lambda one: one.given_us)


def test_the_same_word_again_changes_nothing(log: PredictionLog):
    assert log.add_feedback(word())
    assert not log.add_feedback(word(given_us=200))
    assert not log.add_feedback(word(given_us=200, epc="written otherwise"))
    assert log.feedback() == [word()]


def test_a_later_word_replaces_an_earlier_one_of_the_same_person(log: PredictionLog):
    later = word(right=False, given_us=200)
    assert log.add_feedback(word())
    assert log.add_feedback(later)
    assert not log.add_feedback(word(given_us=150))  # came late
    assert log.feedback() == [later]
    assert log.add_feedback(word(right=False, why="looked again", given_us=300))
    assert len(log.feedback()) == 1


def test_feedback_that_does_not_fit_is_refused(log: PredictionLog):
    with pytest.raises(ValueError, match="64 bits"):
        log.add_feedback(word(event_id=2**63))
    assert log.feedback() == []


# Opening


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "log.db",
        "sqlite:",
        "sqlite::memory:",
        "mysql://u:secret@h/d",
        "postgresql:h",
        "sqlite://h/f",
    ],
)
def test_a_url_that_names_no_log_is_refused_with_a_remedy(wrong: str):
    with pytest.raises(ValueError, match="sqlite:<file>") as caught:
        open_log(wrong)
    assert "secret" not in str(caught.value)


def test_durable_is_checked(tmp_path: Path):
    with pytest.raises(ValueError, match="process or power"):
        open_log(f"sqlite:{tmp_path / 'x'}", durable="fully")


def test_a_log_durable_against_power_loss_works(url: str):
    log = open_log(url, durable="power")
    log.append(entry("a", [scan(1)]))
    log.close()
    again = open_log(url)
    assert [record.scan for record in again.since(0, 9)] == [scan(1)]
    again.close()


def as_of_version_1(url: str) -> None:
    """Take away what later versions have added to a log."""
    undone = ["ALTER TABLE scans DROP COLUMN monitored", "UPDATE log_schema SET version = 1"]
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:")) as connection:
            for statement in undone:
                connection.execute(statement)
        connection.close()
    else:
        with psycopg.connect(url) as connection:
            for statement in undone:
                connection.execute(statement)


def test_a_log_of_an_older_schema_is_brought_up_to_this_one(url: str):
    log = open_log(url)
    log.append(entry("old", [scan(1)]))
    log.close()
    as_of_version_1(url)
    openers = [threading.Thread(target=lambda: open_log(url).close()) for _ in range(4)]
    for opener in openers:
        opener.start()
    for opener in openers:
        opener.join()
    log = open_log(url)
    log.append(entry("new", [scan(2)], monitored=[b"\x01\x02"]))
    assert [told.monitored for told in log.watched(0, 9)] == [None, b"\x01\x02"]
    assert [record.scan for record in log.since(0, 9)] == [scan(1), scan(2)]
    log.close()


def test_a_log_of_a_newer_schema_is_refused(url: str):
    open_log(url).close()
    statement = f"UPDATE log_schema SET version = {VERSION + 1}"
    if url.startswith("sqlite:"):
        with sqlite3.connect(url.removeprefix("sqlite:")) as connection:
            connection.execute(statement)
        connection.close()
    else:
        with psycopg.connect(url) as connection:
            connection.execute(statement)
    with pytest.raises(LogError, match=f"schema {VERSION + 1}.*newer Trailwatch"):
        open_log(url)


def test_several_may_make_the_same_log_at_once(url: str):
    errors: list[Exception] = []
    start = threading.Barrier(4)

    def make(i: int) -> None:
        start.wait()
        try:
            log = open_log(url)
            log.append(entry(f"r{i}", [scan(i)]))
            log.close()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=make, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    log = open_log(url)
    assert log.figures()["scans"] == 4
    log.close()


def test_a_closed_log_says_so(log: PredictionLog):
    log.append(entry("a", [scan(1)]))
    log.close()
    for use in (lambda: log.append(entry("b", [scan(2)])), lambda: log.since(0, 1), log.ping):
        with pytest.raises(LogError, match="closed"):
            use()
