"""A new version of data/: what it adds, what it keeps, what it cuts, and that it is repeatable."""

from __future__ import annotations

import csv
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from intake import layout
from intake.master import read_sites
from intake.read import read_scans
from logbook import Feedback, LoggedScan, export
from logbook.opened import open_log
from pipelines import verdicts
from pipelines.runspace import RunError
from pipelines.snapshot import Cut, Known, make, merged, read_book
from tests.logbook.logged import entry, verdict
from trail.scan import ANOMALIES, DAY_US, EVENT_TYPES, HOUR_US
from trail.sites import Sites

START_US = 1_751_328_000_000_000  # 2025-07-01
HEADER = "event_id,epc_code,location_id,event_type,event_time"
NO_SITES = Sites.of([], [], [], [], [])
OPS = 4


def code(lot: int, serial: int = 1) -> str:
    return f"001.8804823.1293291.{lot:06d}.20250701.{serial:09d}"


def line(i: int, epc: str, op: int, time_us: int) -> str:
    return f"{i},{epc},{op + 1},{EVENT_TYPES[op]},{np.datetime64(time_us, 'us')}"


def scan(epc: str, op: int, time_us: int, event_id: int = -1) -> LoggedScan:
    return LoggedScan(epc, 1, event_id, str(op + 1), op, time_us)


def when(lot: int, op: int) -> int:
    """Lot i begins on day i; an operation takes an hour."""
    return START_US + lot * DAY_US + op * HOUR_US


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Ten lots, one a day, of one code and four scans each."""
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        line(4 * lot + op, code(lot), op, when(lot, op)) for lot in range(10) for op in range(4)
    ]
    (data / "scans.csv").write_text("\n".join([HEADER, *rows, "99,bad", ""]))
    (data / "sites.csv").write_text("location_id,lat,lon\n1,37,127\n2,38,127\n")
    (data / "answers.parquet").write_bytes(b"nobody opens this")
    return data


def log_of(folder: Path, *scans: LoggedScan, flagged: tuple[int, ...] = ()):
    log = open_log(f"sqlite:{folder / 'log.db'}")
    said = [
        verdict(level=0.0, score=(0.0, 0.0, 0.0, 0.0, 90.0 if i in flagged else 0.0))
        for i in range(len(scans))
    ]
    one = entry("r1", list(scans))
    log.append(type(one)(one.request, one.scans, said))
    return log


def known(folder: Path, *scans: LoggedScan, feedback=(), sites=NO_SITES, flagged=()) -> Known:
    log = log_of(folder, *scans, flagged=flagged)
    try:
        return Known(export.scans(log, len(scans)), list(feedback), sites)
    finally:
        log.close()


def read(folder: Path):
    found = layout.find(folder)
    return read_scans(found.scans, read_sites(found.sites))


def triples(intake) -> list[tuple[str, int, int]]:
    scans = intake.scans
    text = scans.codes.text.take(scans.epc).to_pylist()
    return sorted(zip(text, scans.op.tolist(), scans.time_us.tolist(), strict=True))


def test_scans_of_the_log_join_those_of_the_base(base, tmp_path):
    seen = scan(code(3), 1, when(3, 1), 500)
    new = [scan(code(20), op, when(20, op), 600 + op) for op in range(4)]
    made = make(base, tmp_path / "new", known(tmp_path, seen, *new), Cut(), "UTC")
    assert (made.added, made.known_already, made.left_out) == (4, 1, 0)
    before, after = read(base), read(tmp_path / "new")
    assert triples(after) == sorted(
        triples(before) + [(code(20), op, when(20, op)) for op in range(4)]
    )
    assert after.event_id.to_pylist()[:4] == ["600", "601", "602", "603"]
    assert len(after.quarantine) == len(before.quarantine) == 1
    assert (tmp_path / "new" / "answers.parquet").read_bytes() == b"nobody opens this"


def test_a_scan_that_was_logged_twice_is_one(base, tmp_path):
    twice = [scan(code(20), 0, when(20, 0), 600), scan(code(20), 0, when(20, 0), 601)]
    made = make(base, tmp_path / "new", known(tmp_path, *twice), Cut(), "UTC")
    assert (made.added, made.known_already) == (1, 1)


def test_event_ids_of_the_base_stay_its_own(base, tmp_path):
    new = [scan(code(20), 0, when(20, 0), 3), scan(code(20), 1, when(20, 1), 603)]
    make(base, tmp_path / "new", known(tmp_path, *new), Cut(), "UTC")
    assert read(tmp_path / "new").event_id.to_pylist()[:2] == [None, "603"]


def test_nothing_new_is_no_new_version(base, tmp_path):
    made = make(base, tmp_path / "new", known(tmp_path, scan(code(3), 1, when(3, 1))), Cut(), "UTC")
    assert not made.differs


def test_a_window_keeps_whole_lots_and_what_cannot_be_read(base, tmp_path):
    # A late scan of an old lot does not make the lot a new one.
    late = scan(code(2), 3, when(12, 0))
    made = make(base, tmp_path / "new", known(tmp_path, late), Cut(window_days=4), "UTC")
    after = read(tmp_path / "new")
    assert made.left_out == 5 * 4 + 1
    assert {c for c, _, _ in triples(after)} == {code(lot) for lot in range(5, 10)}
    assert len(after.scans) == 5 * 4
    assert len(after.quarantine) == 1


def test_the_past_knows_nothing_of_what_came_later(base, tmp_path):
    new = [scan(code(20), 0, when(20, 0))]
    words = [
        Feedback(-1, code(1), when(1, 2), "jump", True, "ann", "", given_us=when(given, 0))
        for given in (4, 6)
    ]
    cut = Cut.of({"as_of": "2025-07-06"})
    made = make(base, tmp_path / "new", known(tmp_path, *new, feedback=words), cut, "UTC")
    assert max(time for _, _, time in triples(read(tmp_path / "new"))) < when(5, 0)
    assert made.left_out == 5 * 4 + 1
    assert made.verdicts == 1


def test_flags_that_nobody_judged_count_neither_way(base, tmp_path):
    new = [scan(code(20), op, when(20, op)) for op in range(3)]
    word = Feedback(-1, code(20), when(20, 1), "jump", False, "ann", "no", given_us=1)
    told = known(tmp_path, *new, feedback=[word], flagged=(0, 1))
    made = make(base, tmp_path / "new", told, Cut(), "UTC")
    assert (made.verdicts, made.unjudged) == (1, 1)
    after = read(tmp_path / "new")
    target = np.zeros((len(after.scans), 5), dtype=np.int8)
    source = np.zeros(len(after.scans), dtype=np.int64)
    none = np.full(len(after.scans), -1)
    verdicts.override(verdicts.read(tmp_path / "new"), after.scans, none, target, source)
    jump = ANOMALIES.index("jump")
    of = {int(t): i for i, t in enumerate(after.scans.time_us)}
    assert target[of[when(20, 0)], jump] == -1
    assert target[of[when(20, 1)], jump] == 0
    assert source.nonzero()[0].tolist() == [of[when(20, 1)]]
    assert (target < 0).sum() == 1


def test_a_word_said_later_overrides_an_unjudged_flag(base, tmp_path):
    new = [scan(code(20), 0, when(20, 0))]
    make(base, tmp_path / "one", known(tmp_path, *new, flagged=(0,)), Cut(), "UTC")
    word = Feedback(-1, code(20), when(20, 0), "jump", True, "ann", "yes", given_us=1)
    again = Known(export.SCHEMA.empty_table(), [word], NO_SITES)
    made = make(tmp_path / "one", tmp_path / "two", again, Cut(), "UTC")
    assert made.differs and made.verdicts == 1
    with (tmp_path / "two" / "verdicts.csv").open() as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == ["unknown", "right"]


def test_sites_entered_at_run_time_join_the_master(base, tmp_path):
    book = Sites.of(
        ["2", "7", "8"],
        ["B", "C", ""],
        [1, 2, -1],
        [38.5, 36, np.nan],
        [127, 128, np.nan],
        [True, True, False],
    )
    told = Known(export.SCHEMA.empty_table(), [], book)
    made = make(base, tmp_path / "new", told, Cut(), "UTC")
    sites = read_sites(tmp_path / "new" / "sites.csv")
    assert made.differs and made.sites == 2
    assert sites.ids == ("1", "2", "7")
    assert sites.names[2] == "C" and sites.latitude[1] == 38.5


def test_a_book_that_says_the_same_changes_nothing(base):
    sites = read_sites(base / "sites.csv")
    assert merged(sites, sites)[1] == 0


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    lots=st.lists(st.tuples(st.integers(5, 15), st.integers(0, 3)), max_size=8),
    window=st.none() | st.integers(1, 15),
)
def test_nothing_is_lost_and_the_same_input_gives_the_same_bytes(base, tmp_path, lots, window):
    folder = tmp_path / "log"
    folder.mkdir(exist_ok=True)
    (folder / "log.db").unlink(missing_ok=True)
    told = known(folder, *(scan(code(lot), op, when(lot, op)) for lot, op in dict.fromkeys(lots)))
    made = make(base, tmp_path / "one", told, Cut(window_days=window), "UTC")
    kept = len(read(tmp_path / "one").scans)
    assert kept == 40 + len(told.logged) - made.known_already - made.left_out
    make(base, tmp_path / "two", told, Cut(window_days=window), "UTC")
    assert tree(tmp_path / "one") == tree(tmp_path / "two")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_the_new_version_can_be_the_next_base(base, tmp_path):
    first = [scan(code(20), 0, when(20, 0))]
    make(base, tmp_path / "one", known(tmp_path, *first), Cut(), "UTC")
    (tmp_path / "log.db").unlink()
    second = known(tmp_path, *first, scan(code(20), 1, when(20, 1)))
    made = make(tmp_path / "one", tmp_path / "two", second, Cut(), "UTC")
    assert (made.added, made.known_already) == (1, 1)
    assert sorted(p.name for p in (tmp_path / "two" / "scans").iterdir()) == [
        "logged-2.parquet",
        "logged.parquet",
        "scans.csv",
    ]
    assert pq.read_metadata(tmp_path / "two" / "scans" / "logged-2.parquet").num_rows == 1


class Service(BaseHTTPRequestHandler):
    """Answers as `GET /admin/sites` does."""

    def do_GET(self):
        allowed = self.headers.get("Authorization") == "Bearer k"
        rows = [
            {
                "location_id": "7",
                "name": "C",
                "tier": "WMS",
                "latitude": 1,
                "longitude": 2,
                "known": True,
            },
            {"location_id": "8", "name": "", "known": False},
        ]
        self.send_response(200 if allowed and self.path == "/admin/sites" else 403)
        self.end_headers()
        self.wfile.write(json.dumps(rows).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def service():
    server = HTTPServer(("127.0.0.1", 0), Service)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_site_book_is_asked_of_the_service(service):
    sites = read_book(service, "k")
    assert sites.ids == ("7", "8") and sites.tier.tolist() == [1, -1]
    assert sites.known.tolist() == [True, False]
    with pytest.raises(RunError, match=r"cannot be read .*403"):
        read_book(service, "wrong")
    with pytest.raises(RunError, match="start the service"):
        read_book("http://127.0.0.1:9")
