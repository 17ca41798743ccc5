"""The prediction log that a URL names."""

from __future__ import annotations

from pathlib import Path

from logbook import PredictionLog
from logbook.sql import SqlLog

_REMEDY = "give sqlite:<file> or postgresql://user:password@host:port/database"


def default_url(home: Path, model: str) -> str:
    """URL of a model's log where no other is named: SQLite in the home folder."""
    return f"sqlite:{home / 'state' / model / 'log.db'}"


def open_log(url: str, *, durable: str = "process") -> PredictionLog:
    """Open the log, making it where it is not there yet.

    Args:
        url: `sqlite:<file>`, or `postgresql://...` as libpq reads it.
        durable: "process": what was appended survives the death of this process; "power": that of
            the machine too. PostgreSQL keeps to its own `synchronous_commit` for "process".

    Raises:
        ValueError: there is no such kind of log.
        LogError: it cannot be opened, or a newer Trailwatch wrote it.
    """
    if durable not in ("process", "power"):
        raise ValueError(f"durable is {durable!r}; give process or power")
    kind, _, place = url.partition(":")
    if kind == "sqlite" and place:
        from logbook.sqlite import SqliteDatabase

        return SqlLog(SqliteDatabase(_file(url, place), durable))
    if kind in ("postgresql", "postgres") and place.startswith("//"):
        from logbook.postgres import PostgresDatabase

        return SqlLog(PostgresDatabase(url, durable))
    raise ValueError(f"the log's URL is {_shown(url)!r}; {_REMEDY}")


def _file(url: str, place: str) -> Path:
    # As SQLAlchemy has it, too: sqlite:///relative and sqlite:////absolute.
    path = place.removeprefix("///") if place.startswith("///") else place
    if place.startswith("//") and not place.startswith("///"):
        raise ValueError(f"the log's URL is {url!r}, with a host; {_REMEDY}")
    if path in ("", ":memory:"):
        raise ValueError(f"the log's URL is {url!r}, which would be lost; {_REMEDY}")
    return Path(path)


def _shown(url: str) -> str:
    """The URL without what may be a password."""
    before, at, after = url.rpartition("@")
    return f"{before.split(':')[0]}://***@{after}" if at else url
