"""The log in PostgreSQL, which several machines may share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, Final, TypeVar

import psycopg
from psycopg import errors
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from logbook import LogError
from logbook.database import LIST, WAIT_S, Pool, Session
from logbook.rows import Row
from logbook.tables import COLUMNS, CONFLICTS, VERSION, creation, migration

T = TypeVar("T")
Connection = psycopg.Connection[tuple[Any, ...]]

# The order of "C" is that of bytes: quick, and the same on every server.
_KINDS: Final = {"int": "BIGINT", "text": 'TEXT COLLATE "C"', "bytes": "BYTEA"}
_ARRAYS: Final = {"int": "bigint[]", "text": "text[]", "bytes": "bytea[]"}
_CREATION_LOCK: Final = 0x7472_6169_6C  # any number that others are unlikely to lock
_BEGIN: Final = "BEGIN; SELECT id FROM counters FOR UPDATE"
_DEFAULTS: Final[dict[str, str | int | None]] = {
    "connect_timeout": 5,
    "application_name": "trailwatch",
    "keepalives_idle": 30,
    "tcp_user_timeout": int(WAIT_S * 1000),
}
_REMEDIES: Final[tuple[tuple[type[psycopg.Error], str], ...]] = (
    (errors.LockNotAvailable, "end the session that holds the lock, or wait for it"),
    (errors.DiskFull, "the server's disk is full; free some space"),
    (errors.InsufficientPrivilege, "grant this user the right to use its tables"),
    (errors.InvalidSchemaName, "name a schema that is there in search_path"),
    (errors.UndefinedTable, "its tables are gone; restore them, or restart the service"),
    (errors.ReadOnlySqlTransaction, "name the primary server; this one only reads"),
    (errors.TooManyConnections, "let the server take more connections"),
    (psycopg.OperationalError, "start the server, or correct address, database and user"),
)


class _StaleError(Exception):
    """A kept connection did not know that the server was restarted."""


class PostgresSession:
    """A connection's statements."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        with self._connection.cursor(binary=True) as cursor:
            return cursor.execute(_written(statement), parameters).fetchall()

    def each(self, statement: str, parameters: Sequence[Sequence[Any]]) -> list[list[Row]]:
        if not parameters:
            return []
        with self._connection.cursor(binary=True) as cursor:
            cursor.executemany(_written(statement), parameters, returning=True)
            found = [cursor.fetchall()]
            while cursor.nextset():
                found.append(cursor.fetchall())
            return found

    def change(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        return self._connection.execute(_written(statement), parameters).rowcount

    def insert(self, table: str, rows: Sequence[Row]) -> int:
        if not rows:
            return 0
        columns = [list(column) for column in zip(*rows, strict=True)]
        return self._connection.execute(_insertion(table), columns).rowcount


class PostgresDatabase:
    """A PostgreSQL database as a `Database`; its tables are made where they are not there yet.

    Connections that broke are opened again. "process" leaves `synchronous_commit` as the server
    has it; "power" insists on it.

    Args:
        url: `postgresql://...`; its tables stand in the first schema of the search path.
        durable: "process" or "power".

    Raises:
        ValueError: the URL cannot be read.
        LogError: the database cannot be used, or is of a newer schema.
    """

    def __init__(self, url: str, durable: str) -> None:
        try:
            given = conninfo_to_dict(url)
        except psycopg.ProgrammingError as error:
            raise ValueError(
                f"the log's URL cannot be read: {str(error).strip()}; "
                "give postgresql://user:password@host:port/database"
            ) from error
        self._conninfo = make_conninfo("", **{**_DEFAULTS, **given})
        place = f"{given.get('host', 'localhost')}:{given.get('port', 5432)}"
        self._name = f"the log postgresql://{place}/{given.get('dbname', '')}"
        self._durable = durable
        with self._errors():
            connection = self._connect()
            try:
                self._prepare(connection)
            finally:
                connection.close()
        self._pool: Pool[Connection] = Pool(self._name, self._open, lambda c: c.close())

    def write(self, work: Callable[[Session], T]) -> T:
        def transaction(connection: Connection) -> T:
            # The lock on the one row of counters is held until after the commit is visible. So
            # writers come one after another, and whoever reads a number has seen, or sees now, all
            # smaller ones: a sequence would let a later number be committed first, and a reader
            # of `since` would go on from it and miss the earlier one.
            connection.execute(_BEGIN)
            try:
                result = work(PostgresSession(connection))
                connection.execute("COMMIT")
            except BaseException:
                with suppress(psycopg.Error):
                    connection.execute("ROLLBACK")
                raise
            return result

        return self._tried(transaction)

    def read(self, work: Callable[[Session], T]) -> T:
        return self._tried(lambda connection: work(PostgresSession(connection)))

    def close(self) -> None:
        self._pool.close()

    def _tried(self, work: Callable[[Connection], T]) -> T:
        with self._errors():
            try:
                with self._pool.taken() as (connection, fresh):
                    try:
                        return work(connection)
                    except psycopg.OperationalError as error:
                        if fresh or not connection.broken:
                            raise
                        raise _StaleError from error
            except _StaleError:
                self._pool.drop()
            with self._pool.taken() as (connection, _):
                return work(connection)

    def _open(self) -> Connection:
        connection = self._connect()
        try:
            _check(connection, self._name)
        except BaseException:
            connection.close()
            raise
        return connection

    def _connect(self) -> Connection:
        connection = psycopg.connect(self._conninfo, autocommit=True, client_encoding="utf8")
        try:
            settings = f"SET lock_timeout = {int(WAIT_S * 1000)}"
            if self._durable == "power":
                settings += "; SET synchronous_commit = on"
            connection.execute(settings)
        except BaseException:
            connection.close()
            raise
        return connection

    def _prepare(self, connection: Connection) -> None:
        encoding = connection.info.parameter_status("server_encoding")
        if encoding != "UTF8":
            raise LogError(
                f"{self._name} has the encoding {encoding}; create the database with "
                "ENCODING 'UTF8' TEMPLATE template0"
            )
        version = _version(connection)
        if version is None or version < VERSION:
            # Locked before the transaction begins, which then sees what the one before made; the
            # end of the connection unlocks.
            connection.execute("SELECT pg_advisory_lock(%s)", (_CREATION_LOCK,))
            with connection.transaction():
                version = _version(connection)  # somebody may have been quicker
                made = creation(_KINDS) if version is None else []
                for statement in made or migration(version or VERSION, _KINDS):
                    connection.execute(statement)
        _check(connection, self._name)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except psycopg.Error as error:
            remedy = next(
                (said for kind, said in _REMEDIES if isinstance(error, kind)),
                "see what the server says of it",
            )
            told = " ".join(str(error).split())
            raise LogError(f"{self._name}: {told}; {remedy}") from error


def _version(connection: Connection) -> int | None:
    there = connection.execute("SELECT to_regclass('log_schema') IS NOT NULL").fetchone()
    if there is None or not there[0]:
        return None
    found = connection.execute("SELECT version FROM log_schema").fetchone()
    return None if found is None else int(found[0])


def _check(connection: Connection, name: str) -> None:
    version = _version(connection)
    if version is None:
        raise LogError(f"{name} holds no log (any more); restore it or restart the service")
    if version > VERSION:
        raise LogError(
            f"{name} has schema {version}, and this Trailwatch reads up to {VERSION}; "
            "use the newer Trailwatch that wrote it, or name another database"
        )


@lru_cache(maxsize=64)
def _written(statement: str) -> str:
    return statement.replace(LIST, "= ANY(?)").replace("?", "%s")


@lru_cache(maxsize=16)
def _insertion(table: str) -> str:
    columns = COLUMNS[table]
    arrays = ", ".join(f"%s::{_ARRAYS[kind]}" for kind in columns.values())
    return (
        f"INSERT INTO {table} ({', '.join(columns)}) "
        f"SELECT * FROM unnest({arrays}) "
        f"ON CONFLICT ({CONFLICTS[table]}) DO NOTHING"
    )
