"""Embedded stores: trails and counters as packed values on a shelf, merged by numpy in-process.

The shelf is a dictionary (`memory:`) or LMDB; everything else is the same for both. The value of a
trail begins with the hour at which it is due to be forgotten; that of a lot's groups too, and with
the hour at which to look at its trails.
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
    pack,
    packed_lots,
    recalled,
    table_from,
)
from serving.history.shelf import Pages, Shelf
from serving.history.sitebook import entry_from, entry_text
from serving.history.values import Values, due_of, trails_from
from trail.mates import LotTable
from trail.scan import HOUR_US, Int64, Scans

MOST_LOOKED: Final = 5_000
"""Trails after which a call of `expire` looks at no further lot."""

LOOK_AGAIN_H: Final = 24
"""Hours after which a lot is looked at again at the earliest: trails live up to so much longer."""

_LOT_DUE: Final = struct.Struct("<II")
_LOT: Final = struct.Struct(">q")
_NUMBER: Final = struct.Struct(">I")
_NEVER: Final = 2**32 - 1
_NONE: Final = np.empty(0, np.int64)
_EMPTY: Final = (b"", b"")


class Embedded:
    """A `serving.history.History` on a shelf.

    A lot is noted to be looked at when the first of its trails is due. That one is touched since,
    most often: only then is the next hour sought among its trails, so that a scan costs no note.
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
            first_due = self._write_trails(pages, asked, held, now)
            self._write_lots(pages, asked, held, now, table, first_due)
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
            before = [pages.get(key) for key in keys]
            records, epc = trails_from(before)
            place = found(records, epc, given, asked.epc)
            marked = records.copy()
            marked["said"][place[place >= 0]] = given["said"][place >= 0]
            values = Values(marked, epc, len(keys))
            for i in np.unique(epc[marked["said"] != records["said"]]).tolist():
                pages.put(keys[i], values.value(i, due_of(before[i])))

        with self._lock:
            self._shelf.write(job)

    def book(self) -> list[SiteEntry]:
        with self._lock:
            entries = self._shelf.read(lambda pages: pages.items(b"s"))
        return [entry_from(text) for _, text in entries]

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

    def _write_trails(self, pages: Pages, asked: Asked, held: _Held, now: Merged) -> list[int]:
        """Write the trails that have changed, or are due at another hour; of each lot the hour at
        which the first of these trails is due.
        """
        idle, after_sale, _ = self._due_hours()
        values = Values(now.records[now.kept], now.epc[now.kept], len(held.keys))
        flags = zip(now.changed.tolist(), now.new_sale.tolist(), now.sold.tolist(), strict=True)
        first_due = [_NEVER] * len(asked.lots)
        for i, (lot, (changed, new_sale, sold)) in enumerate(
            zip(asked.lot_of.tolist(), flags, strict=True)
        ):
            before = held.due[i]
            due = after_sale if new_sale else before if sold and before else idle
            if changed or due != before:
                pages.put(held.keys[i], values.value(i, due))
            first_due[lot] = min(first_due[lot], due)
        return first_due

    def _write_lots(
        self,
        pages: Pages,
        asked: Asked,
        held: _Held,
        now: Merged,
        table: LotTable,
        first_due: list[int],
    ) -> None:
        """Write the counters that have changed, or are due at another hour."""
        _, _, due = self._due_hours()
        changed = np.zeros(len(asked.lots), bool)
        changed[asked.lot_of[now.changed]] = True
        packed = dict(packed_lots(table)) if changed.any() else {}
        for i, (lot, is_changed) in enumerate(
            zip(asked.lots.tolist(), changed.tolist(), strict=True)
        ):
            before, look_before = held.lot_due[i]
            look = min(first_due[i], look_before)
            groups, moves = packed.get(lot, _EMPTY) if is_changed else (held.groups[i], None)
            if moves is not None:
                pages.put(_moves_key(lot), moves)
            if moves is not None or (due, look) != (before, look_before):
                pages.put(_lot_key(lot), _LOT_DUE.pack(due, look) + groups)
            if look < look_before:
                pages.note_due(look, _LOT.pack(lot))

    def _due_hours(self) -> tuple[int, int, int]:
        """Hours at which an unsold trail, a sold one, and a lot touched now are due."""
        now_us, keeping = self._clock(), self._keeping
        return (
            due_hour(now_us + keeping.idle_us),
            due_hour(now_us + keeping.after_sale_us),
            due_hour(now_us + keeping.lot_us),
        )


class _Held:
    """What a shelf holds of some codes and their lots; where there is nothing, a trail is due at
    hour 0, and a lot is due at hour 0 and looked at never.
    """

    def __init__(self, pages: Pages, asked: Asked) -> None:
        self.keys = _trail_keys(asked)
        values = [pages.get(key) for key in self.keys]
        self.due = [due_of(value) for value in values]
        self.records, self.epc = trails_from(values)
        lots = asked.lots.tolist()
        values = [pages.get(_lot_key(lot)) for lot in lots]
        self.lot_due = [_LOT_DUE.unpack_from(value) if value else (0, _NEVER) for value in values]
        self.groups = [value[_LOT_DUE.size :] if value else b"" for value in values]
        moves = [pages.get(_moves_key(lot)) or b"" for lot in lots]
        self.table = table_from(asked.lots, self.groups, moves)


def _expire(pages: Pages, hour: int) -> int:
    gone = looked = 0
    while looked < MOST_LOOKED:
        note = pages.take_due(hour)
        if note is None:
            break
        noted, name = note
        value = pages.get(b"g" + name)
        if value is None:
            continue
        due, look = _LOT_DUE.unpack_from(value)
        if look != noted:  # it is noted at another hour
            continue
        dues = []
        for key, trail in pages.items(b"t" + name):
            looked += 1
            trail_due = due_of(trail)
            if trail_due <= hour:
                pages.delete(key)
                gone += 1
            else:
                dues.append(trail_due)
        if not dues and due <= hour:
            pages.delete(b"g" + name)
            pages.delete(b"m" + name)
        else:
            look = max(min([due, *dues]), hour + LOOK_AGAIN_H)
            pages.put(b"g" + name, _LOT_DUE.pack(due, look) + value[_LOT_DUE.size :])
            pages.note_due(look, name)
    return gone


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
