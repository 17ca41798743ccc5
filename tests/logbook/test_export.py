"""Logged scans as a table: each once, up to a number, with what is said of it now."""

from __future__ import annotations

import pytest

from logbook import Entry, Kind, Request, export
from logbook.opened import open_log
from tests.logbook.logged import entry, scan, verdict
from trail.scan import EVENT_TYPES


@pytest.fixture
def log(tmp_path):
    opened = open_log(f"sqlite:{tmp_path / 'log.db'}")
    yield opened
    opened.close()


def test_every_scan_comes_once_whatever_the_pages(log, monkeypatch):
    for i in range(4):
        log.append(entry(f"r{i}", [scan(5 * i + k) for k in range(5)], at=i))
    whole = export.scans(log, 20)
    monkeypatch.setattr(export, "PAGE", 3)
    assert export.scans(log, 20).equals(whole)
    assert whole["id"].to_pylist() == list(range(1, 21))
    assert whole["event_type"].to_pylist() == [EVENT_TYPES[i % 10] for i in range(20)]
    assert whole["event_id"][0].as_py() is None and whole["event_id"][1].as_py() == 1
    assert [t.value for t in whole["event_time"]] == [scan(i).time_us for i in range(20)]
    assert export.scans(log, 7, after=4)["id"].to_pylist() == [5, 6, 7]


def test_an_empty_log_is_an_empty_table(log):
    assert export.scans(log, 100).num_rows == 0
    assert export.scans(log, 0).schema == export.SCHEMA


def test_flags_are_those_of_the_latest_word_and_never_a_shadows(log):
    one, other = scan(1), scan(2)
    loud, quiet = (0.0, 90.0, 0.0, 0.0, 50.0), (0.0, 49.9, 0.0, 0.0, 0.0)
    log.append(
        Entry(
            Request("r1", 1, "/score"),
            [one, other],
            [verdict(score=loud), verdict(score=quiet)],
            shadow=[(other, verdict(Kind.SHADOW, score=loud))],
        )
    )
    log.append(
        Entry(
            Request("r2", 2, "/score"), [], [], revised=[(one, verdict(Kind.REVISED, score=quiet))]
        )
    )
    table = export.scans(log, 2)
    assert table["flag_epcDup"].to_pylist() == [False, False]
    log.append(
        Entry(
            Request("r3", 3, "/score"), [], [], revised=[(one, verdict(Kind.REVISED, score=loud))]
        )
    )
    table = export.scans(log, 2)
    assert table["flag_epcDup"].to_pylist() == [True, False]
    assert table["flag_jump"].to_pylist() == [True, False]
    assert table["flag_locErr"].to_pylist() == [False, False]
