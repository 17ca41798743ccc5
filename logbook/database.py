"""What the log asks of a database, and the pool of connections that both databases share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Generic, Protocol, TypeVar

from logbook import LogError
from logbook.rows import Row

T = TypeVar("T")

LIST: Final = "IN (??)"
"""In a statement: in the list that is bound here, as one parameter."""
WAIT_S: Final = 10.0
"""Seconds to wait for somebody else's lock, or for a server."""
_CONNECTIONS: Final = 4


class Session(Protocol):
    """Statements within one transaction, or one by one.

    Statements mark each parameter with `?`, and a list with `LIST`; they hold no other `?` or `%`.
    """

    def rows(self, statement: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """The rows that a statement gives."""

    def each(self, statement: str, parameters: Sequence[Sequence[Any]]) -> list[list[Row]]:
        """The rows that a query gives for each of several sets of parameters."""

    def change(self, statement: str, parameters: Sequence[Any] = ()) -> int:
        """How many rows a statement changed."""

    def insert(self, table: str, rows: Sequence[Row]) -> int:
        """Insert whole rows, leaving out those whose key is there; returns how many went in."""


class Database(Protocol):
    """A database that holds the tables of `logbook.tables`.

    Errors of its driver come out as `LogError`s that name cause and remedy.
    """

    def write(self, work: Callable[[Session], T]) -> T:
        """Do `work` in one transaction, in which nobody else writes.

        A transaction whose connection breaks may be done twice: `work` must bear that.
        """

    def read(self, work: Callable[[Session], T]) -> T:
        """Do `work`, each of its statements seeing one state of the log."""

    def close(self) -> None:
        """Close all connections."""


C = TypeVar("C")


class Pool(Generic[C]):
    """A few connections, opened when they are needed and kept open; safe from several threads."""

    def __init__(
        self, name: str, open_one: Callable[[], C], close_one: Callable[[C], None]
    ) -> None:
        self._name = name
        self._open_one = open_one
        self._close_one = close_one
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self._lock = threading.Lock()
        self._idle: list[C] = []
        self._closed = False

    @contextmanager
    def taken(self) -> Iterator[tuple[C, bool]]:
        """A connection, and whether it was just opened; it is closed where the block raises."""
        if not self._free.acquire(timeout=WAIT_S):
            raise LogError(f"{self._name}: all {_CONNECTIONS} connections are busy; ask again")
        try:
            with self._lock:
                if self._closed:
                    raise LogError(f"{self._name} has been closed; open it again")
                kept = self._idle.pop() if self._idle else None
            connection = self._open_one() if kept is None else kept
            try:
                yield connection, kept is None
            except BaseException:
                self._close_one(connection)
                raise
            with self._lock:
                kept = None if self._closed else connection
                if kept is not None:
                    self._idle.append(kept)
            if kept is None:
                self._close_one(connection)
        finally:
            self._free.release()

    def drop(self) -> None:
        """Close the connections that nobody uses."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            self._close_one(connection)

    def close(self) -> None:
        """Close all connections, those in use as soon as they are given back."""
        self._closed = True
        self.drop()
