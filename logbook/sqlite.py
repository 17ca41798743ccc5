"""The log in a SQLite file: WAL, so that readers never wait for a writer nor it for them."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, TypeVar

from logbook import LogError
from logbook.database import LIST, WAIT_S, Pool, Session
from logbook.rows import Row
from logbook.tables import COLUMNS, CONFLICTS, VERSION, creation, migration

T = TypeVar("T")

_KINDS: Final = {"int": "INTEGER", "text": "TEXT", "bytes": "BLOB"}
_SYNCHRONOUS: Final = {"process": "NORMAL", "power": "FULL"}
_CACHE_KIB: Final = 16_384
_TIDY_EVERY: Final = 16
"""Transactions after which the WAL is carried over into the file, beside the requests."""
_MOST_PAGES: Final = 8_000
"""Pages of the WAL at which a request must do so itself, so that it begins anew: 32 MiB."""
_REMEDIES: Final = (
    (("SQLITE_BUSY", "SQLITE_LOCKED"), "end the process that holds it, or wait for it"),
    (("SQLITE_FULL",), "the disk is full; free some space"),
    (("SQLITE_READONLY", "SQLITE_PERM", "SQLITE_AUTH"), "let this user write the file"),
    (("SQLITE_CANTOPEN",), "name a file in a folder that this user may write"),
    (("SQLITE_NOTADB",), "that file is something else; move it away or name another"),
    (("SQLITE_CORRUPT",), "the file is damaged; restore it, or save it with sqlite3's .recover"),
    (("SQLITE_IOERR",), "look after the disk: whether it is full, over its quota, or failing"),
)


class SqliteSession:
    """A connection's statements."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        return self._connection.execute(_written(statement), _bound(parameters)).fetchall()

    def each(self, statement: str, parameters: Sequence[Sequence[Any]]) -> list[list[Row]]:
        statement = _written(statement)
        execute = self._connection.execute
        return [execute(statement, _bound(one)).fetchall() for one in parameters]

    def change(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        return self._connection.execute(_written(statement), _bound(parameters)).rowcount

    def insert(self, table: str, rows: Sequence[Row]) -> int:
        return self._connection.executemany(_insertion(table), rows).rowcount if rows else 0


class SqliteDatabase:
    """A SQLite file as a `Database`; made where it is not there yet.

    Args:
        path: the file; its folder is made too.
        durable: "process" or "power".

    Raises:
        LogError: it cannot be opened, or is of a newer schema.
    """

    def __init__(self, path: Path, durable: str) -> None:
        self._path = path
        self._name = f"the log {path}"
        self._durable = durable
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LogError(
                f"{self._name}: {path.parent} is no folder and cannot be made one ({error}); "
                "name a file in a folder that this user may write"
            ) from error
        with self._errors():
            connection = self._connect("rwc")
            try:
                self._prepare(connection)
            finally:
                connection.close()
        self._file = self._stat()
        self._tidier = _Tidier(lambda: self._connect("rw"))
        self._pool: Pool[sqlite3.Connection] = Pool(
            self._name, self._open, lambda connection: connection.close()
        )

    def write(self, work: Callable[[Session], T]) -> T:
        with self._errors(), self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = work(SqliteSession(connection))
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
            self._tidier.wrote()
            return result

    def read(self, work: Callable[[Session], T]) -> T:
        with self._errors(), self._connection() as connection:
            return work(SqliteSession(connection))

    def close(self) -> None:
        self._tidier.close()
        self._pool.close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        # Writes into a file that was moved or deleted would succeed, and be lost.
        if self._stat() != self._file:
            self._pool.drop()
            with self._pool.taken():  # where another log was put in place, go on with that
                self._file = self._stat()
        with self._pool.taken() as (connection, _):
            yield connection

    def _stat(self) -> tuple[int, int]:
        try:
            told = os.stat(self._path)
        except FileNotFoundError:
            return 0, 0
        except OSError as error:
            raise LogError(f"{self._name} cannot be reached: {error}; put it back") from error
        return told.st_dev, told.st_ino

    def _open(self) -> sqlite3.Connection:
        if self._stat() == (0, 0):
            raise LogError(
                f"{self._name} was taken away while it was in use; put it back, or restart the "
                "service to begin a new one"
            )
        connection = self._connect("rw")
        try:
            _check(connection, self._name)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self, mode: str) -> sqlite3.Connection:
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}",
            timeout=WAIT_S,
            isolation_level=None,
            check_same_thread=False,
            uri=True,
        )
        try:
            connection.execute(f"PRAGMA synchronous = {_SYNCHRONOUS[self._durable]}")
            connection.execute(f"PRAGMA cache_size = -{_CACHE_KIB}")
            connection.execute(f"PRAGMA wal_autocheckpoint = {_MOST_PAGES}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: sqlite3.Connection) -> None:
        _use_wal(connection)
        version = _version(connection)
        if version is None or version < VERSION:
            connection.execute("BEGIN IMMEDIATE")
            version = _version(connection)  # somebody may have been quicker
            made = creation(_KINDS, "WITHOUT ROWID") if version is None else []
            for statement in made or migration(version or VERSION, _KINDS):
                connection.execute(statement)
            connection.execute("COMMIT")
        _check(connection, self._name)
        connection.execute("BEGIN IMMEDIATE")  # SQLite opens a file that it may only read, too
        connection.execute("ROLLBACK")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorname", "")
            remedy = next(
                (said for codes, said in _REMEDIES if code.startswith(codes)),
                "see what SQLite says of it",
            )
            raise LogError(f"{self._name}: {error} ({code}); {remedy}") from error


class _Tidier:
    """Carries the WAL over into the file in a thread of its own.

    SQLite lets a request that commits do it, which then waits for the disk several times as long
    as others. What fails here is left to a request, which tells.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._connect = connect
        self._written = 0
        self._due = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="log-tidier", daemon=True)
        self._thread.start()

    def wrote(self) -> None:
        """A transaction was committed."""
        self._written += 1
        if self._written >= _TIDY_EVERY:
            self._written = 0
            self._due.set()

    def close(self) -> None:
        """End the thread."""
        self._closed = True
        self._due.set()
        self._thread.join()

    def _work(self) -> None:
        while self._due.wait() and not self._closed:
            self._due.clear()
            with suppress(sqlite3.Error), closing(self._connect()) as connection:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)")


def _use_wal(connection: sqlite3.Connection) -> None:
    # The switch does not wait for others who are switching too.
    for patience in range(100, -1, -1):
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if not patience or not error.sqlite_errorname.startswith("SQLITE_BUSY"):
                raise
            time.sleep(WAIT_S / 100)


def _version(connection: sqlite3.Connection) -> int | None:
    there = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'log_schema'").fetchone()
    if there is None:
        return None
    return int(connection.execute("SELECT version FROM log_schema").fetchone()[0])


def _check(connection: sqlite3.Connection, name: str) -> None:
    version = _version(connection)
    if version is None:
        raise LogError(f"{name} holds no log (any more); put it back or restart the service")
    if version > VERSION:
        raise LogError(
            f"{name} has schema {version}, and this Trailwatch reads up to {VERSION}; "
            "use the newer Trailwatch that wrote it, or name another log"
        )


@lru_cache(maxsize=64)
def _written(statement: str) -> str:
    return statement.replace(LIST, "IN (SELECT value FROM json_each(?))")


def _bound(parameters: Sequence[Any]) -> Sequence[Any]:
    return [json.dumps(one) if isinstance(one, list) else one for one in parameters]


@lru_cache(maxsize=16)
def _insertion(table: str) -> str:
    columns = COLUMNS[table]
    marks = ", ".join("?" for _ in columns)
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks}) "
        f"ON CONFLICT ({CONFLICTS[table]}) DO NOTHING"
    )
