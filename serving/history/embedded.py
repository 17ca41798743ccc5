"""Embedded stores: trails and counters as packed values on a shelf, merged by numpy in-process.

The shelf is a dictionary (`memory:`) or LMDB; everything else is the same for both. The value of a
trail or of a lot's groups begins with the hour at which it is due to be forgotten.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from hashlib import blake2b
from typing import Final

import numpy as np

from serving.history import Recall, SiteEntry, UInt8
from serving.history.keeping import Keeping, due_hour
from serving.history.mending import mended
from serving.history.merging import Merged, merged
from serving.history.packed import (
    Asked,
    asked_for,
    found,
    joined,
    pack,
    packed_lots,
    recalled,
    table_from,
)
from serving.history.shelf import DUE_KEY_BYTES, Pages, Shelf
from serving.history.sitebook import entry_from, entry_text
from trail.mates import LotTable
from trail.scan import HOUR_US, Int64, Scans

MOST_DUE: Final = 5_000
"""Due times that one call of `expire` looks at."""

_DUE: Final = struct.Struct("<I")
_LOT: Final = struct.Struct(">q")
_NUMBER: Final = struct.Struct(">I")
_NONE: Final = np.empty(0, np.int64)


class Embedded:
    """A `serving.history.History` on a shelf.

    A key is noted to be looked at when it is first written, and again only where a sale makes it
    due earlier; a touch moves the due hour in the value, which counts when it is looked at.
    """

    def __init__(self, shelf: Shelf, keeping: Keeping, clock: Callable[[], int]) -> None:
        self._shelf = shelf
        self._keeping = keeping
        self._clock = clock
        self._lock = threading.Lock()

    def remember(self, scans: Scans, event_id: Int64) -> Recall:
        given = pack(scans, event_id)
        asked = Asked.of(scans.codes, scans.epc)

        def job(pages: Pages) -> tuple[Merged, LotTable]:
            held = _Held(pages, asked)
            now = merged(asked, held.records, held.epc, given, self._keeping)
            table = mended(held.table, asked, now, self._keeping.most_groups)
            self._write_trails(pages, held, now)
            self._write_lots(pages, asked, held, now, table)
            return now, table

        with self._lock:
            now, table = self._shelf.write(job)
        return recalled(asked, now.records, now.epc, table, now.at, now.new)

    def recall(self, codes: list[str]) -> Recall:
        asked = asked_for(codes)
        with self._lock:
            held = self._shelf.read(lambda pages: _Held(pages, asked))
        return recalled(asked, held.records, held.epc, held.table, _NONE, _NONE.astype(bool))

    def mark(self, scans: Scans, event_id: Int64, said: UInt8) -> None:
        given = pack(scans, event_id, said)
        asked = Asked.of(scans.codes, scans.epc)

        def job(pages: Pages) -> None:
            keys = _trail_keys(asked)
            values = [pages.get(key) or b"" for key in keys]
            records, epc = joined([value[_DUE.size :] for value in values])
            place = found(records, epc, given, asked.epc)
            marked = records.copy()
            marked["said"][place[place >= 0]] = given["said"][place >= 0]
            cut = np.searchsorted(epc, np.arange(len(keys) + 1))
            for i in np.unique(epc[marked["said"] != records["said"]]).tolist():
                trail = marked[cut[i] : cut[i + 1]].tobytes()
                pages.put(keys[i], values[i][: _DUE.size] + trail)

        with self._lock:
            self._shelf.write(job)

    def book(self) -> list[SiteEntry]:
        with self._lock:
            texts = self._shelf.read(lambda pages: list(pages.values(b"s")))
        return [entry_from(text) for text in texts]

    def number(self, entries: list[SiteEntry]) -> list[int]:
        with self._lock:
            return self._shelf.write(lambda pages: [_number(pages, entry) for entry in entries])

    def expire(self, now_us: int) -> int:
        hour = now_us // HOUR_US
        with self._lock:
            return self._shelf.write(lambda pages: _expire(pages, hour))

    def ping(self) -> None:
        with self._lock:
            self._shelf.read(lambda pages: pages.get(b"s"))

    def close(self) -> None:
        with self._lock:
            self._shelf.close()

    def _write_trails(self, pages: Pages, held: _Held, now: Merged) -> None:
        """Write the trails that have changed, or are due at another hour."""
        clock = self._clock()
        idle = due_hour(clock + self._keeping.idle_us)
        after_sale = due_hour(clock + self._keeping.after_sale_us)
        records, epc = now.records[now.kept], now.epc[now.kept]
        cut = np.searchsorted(epc, np.arange(len(held.keys) + 1)).tolist()
        flags = zip(now.changed.tolist(), now.new_sale.tolist(), now.sold.tolist(), strict=True)
        for i, (changed, new_sale, sold) in enumerate(flags):
            before = held.due[i]
            due = after_sale if new_sale else before if sold and before else idle
            if changed or due != before:
                trail = records[cut[i] : cut[i + 1]].tobytes()
                _put(pages, held.keys[i], due, before, trail)

    def _write_lots(
        self, pages: Pages, asked: Asked, held: _Held, now: Merged, table: LotTable
    ) -> None:
        """Write the counters that have changed, or are due at another hour."""
        idle = due_hour(self._clock() + self._keeping.idle_us)
        changed = np.zeros(len(asked.lots), bool)
        changed[asked.lot_of[now.changed]] = True
        for lot, groups, moves in packed_lots(table) if changed.any() else ():
            i = int(np.searchsorted(asked.lots, lot))
            if changed[i]:
                _put(pages, _lot_key(lot), idle, held.lot_due[i], groups)
                pages.put(_moves_key(lot), moves)
        for i in np.flatnonzero(~changed).tolist():
            if held.lot_due[i] not in (0, idle):
                _put(pages, _lot_key(int(asked.lots[i])), idle, held.lot_due[i], held.groups[i])


class _Held:
    """What a shelf holds of some codes and their lots; due hours are 0 where there is nothing."""

    def __init__(self, pages: Pages, asked: Asked) -> None:
        self.keys = _trail_keys(asked)
        self.due, trails = _parted([pages.get(key) for key in self.keys])
        self.records, self.epc = joined(trails)
        lots = asked.lots.tolist()
        self.lot_due, self.groups = _parted([pages.get(_lot_key(lot)) for lot in lots])
        moves = [pages.get(_moves_key(lot)) or b"" for lot in lots]
        self.table = table_from(asked.lots, self.groups, moves)


def _parted(values: list[bytes | None]) -> tuple[list[int], list[bytes]]:
    """Due hours, and what follows them."""
    due = [_DUE.unpack_from(value)[0] if value else 0 for value in values]
    return due, [value[_DUE.size :] if value else b"" for value in values]


def _put(pages: Pages, key: bytes, due: int, before: int, rest: bytes) -> None:
    pages.put(key, _DUE.pack(due) + rest)
    if not before or due < before:
        pages.note_due(due, key.ljust(DUE_KEY_BYTES, b"\0"))


def _expire(pages: Pages, hour: int) -> int:
    trails = 0
    for noted in pages.take_due(hour, MOST_DUE):
        trail = noted.startswith(b"t")
        key = noted if trail else noted[: 1 + _LOT.size]
        value = pages.get(key)
        if value is None:
            continue
        (due,) = _DUE.unpack_from(value)
        if due > hour:
            pages.note_due(due, noted)
            continue
        pages.delete(key)
        trails += trail
        if not trail:
            pages.delete(b"m" + key[1:])
    return trails


def _number(pages: Pages, entry: SiteEntry) -> int:
    """The number of a site, entered where it is new."""
    name = b"n" + blake2b(entry.id.encode(), digest_size=16).digest()
    number = pages.get(name)
    if number is None:
        count = pages.get(b"count") or _NUMBER.pack(0)
        number = count
        pages.put(name, number)
        pages.put(b"count", _NUMBER.pack(_NUMBER.unpack(count)[0] + 1))
        pages.put(b"s" + number, entry_text(entry))
    elif entry.known:
        pages.put(b"s" + number, entry_text(entry))
    return int(_NUMBER.unpack(number)[0])


def _trail_keys(asked: Asked) -> list[bytes]:
    lots = [b"t" + _LOT.pack(lot) for lot in asked.lots.tolist()]
    return [lots[lot] + key for lot, key in zip(asked.lot_of.tolist(), asked.key, strict=True)]


def _lot_key(lot: int) -> bytes:
    return b"g" + _LOT.pack(lot)


def _moves_key(lot: int) -> bytes:
    return b"m" + _LOT.pack(lot)
