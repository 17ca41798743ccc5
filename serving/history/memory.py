"""A shelf of dictionaries, gone with the process."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable

from serving.history.shelf import BUCKET_BYTES, Pages, T


class MemoryShelf:
    """Values in dictionaries, written at once: there is no disk that could fail midway."""

    def __init__(self) -> None:
        self._buckets: defaultdict[bytes, dict[bytes, bytes]] = defaultdict(dict)
        self._due: list[tuple[int, bytes]] = []
        self._noted: set[tuple[int, bytes]] = set()

    def read(self, job: Callable[[Pages], T]) -> T:
        return job(self)

    def write(self, job: Callable[[Pages], T]) -> T:
        return job(self)

    def close(self) -> None:
        self._buckets.clear()
        self._due.clear()
        self._noted.clear()

    def get(self, key: bytes) -> bytes | None:
        bucket = self._buckets.get(key[:BUCKET_BYTES])
        return None if bucket is None else bucket.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._buckets[key[:BUCKET_BYTES]][key] = value

    def delete(self, key: bytes) -> None:
        bucket = self._buckets.get(key[:BUCKET_BYTES], {})
        bucket.pop(key, None)
        if not bucket:
            self._buckets.pop(key[:BUCKET_BYTES], None)

    def items(self, prefix: bytes) -> list[tuple[bytes, bytes]]:
        if len(prefix) == BUCKET_BYTES:
            return sorted(self._buckets.get(prefix, {}).items())
        every = (item for bucket in self._buckets.values() for item in bucket.items())
        return sorted(item for item in every if item[0].startswith(prefix))

    def note_due(self, hour: int, name: bytes) -> None:
        if (hour, name) not in self._noted:
            self._noted.add((hour, name))
            heapq.heappush(self._due, (hour, name))

    def take_due(self, hour: int) -> tuple[int, bytes] | None:
        if not self._due or self._due[0][0] > hour:
            return None
        note = heapq.heappop(self._due)
        self._noted.remove(note)
        return note
