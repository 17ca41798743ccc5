"""A shelf of dictionaries, gone with the process."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from serving.history.shelf import Pages, T


class MemoryShelf:
    """Values in a dictionary, written at once: there is no disk that could fail midway."""

    def __init__(self) -> None:
        self._values: dict[bytes, bytes] = {}
        self._due: list[tuple[int, bytes]] = []
        self._noted: set[tuple[int, bytes]] = set()

    def read(self, job: Callable[[Pages], T]) -> T:
        return job(self)

    def write(self, job: Callable[[Pages], T]) -> T:
        return job(self)

    def close(self) -> None:
        self._values.clear()
        self._due.clear()
        self._noted.clear()

    def get(self, key: bytes) -> bytes | None:
        return self._values.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._values[key] = value

    def delete(self, key: bytes) -> None:
        self._values.pop(key, None)

    def values(self, prefix: bytes) -> Iterable[bytes]:
        keys = sorted(key for key in self._values if key.startswith(prefix))
        return [self._values[key] for key in keys]

    def note_due(self, hour: int, key: bytes) -> None:
        if (hour, key) not in self._noted:
            self._noted.add((hour, key))
            heapq.heappush(self._due, (hour, key))

    def take_due(self, hour: int, most: int) -> list[bytes]:
        taken: list[bytes] = []
        while self._due and self._due[0][0] <= hour and len(taken) < most:
            note = heapq.heappop(self._due)
            self._noted.remove(note)
            taken.append(note[1])
        return taken
