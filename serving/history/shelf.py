"""The shelf: what an embedded store asks of a dictionary or of LMDB."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol, TypeVar

T = TypeVar("T")

BUCKET_BYTES: Final = 9
"""Keys of a trail begin with so many bytes that name its lot."""


class Pages(Protocol):
    """A shelf within one transaction."""

    def get(self, key: bytes) -> bytes | None:
        """The value of a key."""

    def put(self, key: bytes, value: bytes) -> None:
        """Write a value."""

    def delete(self, key: bytes) -> None:
        """Remove a key, if it is there."""

    def items(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        """Keys that begin so, in their order, and their values."""

    def note_due(self, hour: int, name: bytes) -> None:
        """Note at which hour (since 1970) to look at something, by a name of 8 bytes; noted twice
        is noted once.
        """

    def take_due(self, hour: int) -> tuple[int, bytes] | None:
        """Take out the earliest note if its hour has come: its hour and name."""


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
