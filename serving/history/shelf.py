"""The shelf: what an embedded store asks of a dictionary or of LMDB."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol, TypeVar

T = TypeVar("T")

DUE_KEY_BYTES: Final = 25
"""Bytes of each key that is noted with a due time."""


class Pages(Protocol):
    """A shelf within one transaction."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""

    def put(self, key: bytes, value: bytes) -> None:
        """Write a value."""

    def delete(self, key: bytes) -> None:
        """Remove a key, if it is there."""

    def values(self, prefix: bytes) -> Iterable[bytes]:
        """Values of the keys that begin so, in the order of their keys."""

    def note_due(self, hour: int, key: bytes) -> None:
        """Note at which hour (since 1970) to look at a key; noted twice is noted once."""

    def take_due(self, hour: int, most: int) -> list[bytes]:
        """Take out the keys whose hour has come, at most so many, the earliest first."""


class Shelf(Protocol):
    """Where an embedded store keeps its values. Used by one thread at a time."""

    def read(self, job: Callable[[Pages], T]) -> T:
        """Do something in a transaction that only reads."""

    def write(self, job: Callable[[Pages], T]) -> T:
        """Do something in a transaction: all that it writes counts, or nothing after an error.

        The job may be done again from its start, so it must change nothing but the pages.
        """

    def close(self) -> None:
        """Release it."""
