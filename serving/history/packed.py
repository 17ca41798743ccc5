"""Packed records: how trails and counters lie in every store, and the way there and back.

A scan takes 21 bytes, a group of a lot 28, a move 12; all little-endian, without gaps. `place` is
site * 16 + operation. Groups lie in the order of (time, place) and carry a number within their
lot; moves name groups by it, so that a new group does not renumber the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serving.history import Recall, UInt8
from trail.epc import EpcTable, parse
from trail.mates import LotTable
from trail.scan import Bool, Int32, Int64, Scans

Index = npt.NDArray[np.intp]
Records = npt.NDArray[Any]
"""A structured array of one of the three types below."""

SCAN: Final = np.dtype([("time_us", "<i8"), ("place", "<u4"), ("event_id", "<i8"), ("said", "u1")])
GROUP: Final = np.dtype(
    [
        ("time_us", "<i8"),
        ("place", "<u4"),
        ("n", "<u4"),
        ("low", "<i4"),
        ("high", "<i4"),
        ("number", "<u4"),
    ]
)
MOVE: Final = np.dtype([("end", "<u4"), ("start", "<u4"), ("n", "<u4")])

_MOST_SITES: Final = 2**28


@dataclass(frozen=True, slots=True)
class Asked:
    """The codes of a call, by lot.

    Attributes:
        codes: m distinct codes, those of a lot side by side, lots ascending.
        key: 16 bytes that stand for each code.
        lots: int64 (l,), the distinct lots, ascending.
        first: int64 (l + 1,), where each lot begins in `codes`.
        epc: int32 (n,), row in `codes` of each given scan.
    """

    codes: EpcTable
    key: list[bytes]
    lots: Int64
    first: Int64
    epc: Int32

    @classmethod
    def of(cls, codes: EpcTable, epc: Int32) -> Asked:
        """The codes that the given scans have, `epc` being rows of `codes`."""
        used = np.flatnonzero(np.bincount(epc, minlength=len(codes)))
        used = used[np.argsort(codes.lot_key[used], kind="stable")]
        table = codes.take(used)
        key = [blake2b(text.encode(), digest_size=16).digest() for text in table.text.to_pylist()]
        row = np.empty(len(codes), np.int32)
        row[used] = np.arange(len(used), dtype=np.int32)
        if len(set(key)) < len(key):
            table, key, row[used] = _once(table, key)
        lots, first = np.unique(table.lot_key, return_index=True)
        return cls(table, key, lots, np.append(first, len(key)).astype(np.int64), row[epc])

    def __len__(self) -> int:
        return len(self.key)

    @property
    def lot_of(self) -> Index:
        """Row in `lots` of each code, intp (m,)."""
        return np.repeat(np.arange(len(self.lots)), np.diff(self.first))


def _once(table: EpcTable, key: list[bytes]) -> tuple[EpcTable, list[bytes], Int32]:
    """Rows of codes that were listed twice made one, and the new row of each."""
    rows = {k: i for i, k in reversed(list(enumerate(key)))}
    kept = np.array(sorted(rows.values()))
    place = {key[i]: at for at, i in enumerate(kept)}
    return table.take(kept), [key[i] for i in kept], np.array([place[k] for k in key], np.int32)


def asked_for(codes: list[str]) -> Asked:
    """Codes asked about, which may repeat."""
    table = parse(pa.array(list(dict.fromkeys(codes)), pa.string()))
    return Asked.of(table, np.arange(len(table), dtype=np.int32))


def pack(scans: Scans, event_id: Int64, said: UInt8 | None = None) -> Records:
    """Records of scans, `SCAN` (n,).

    Raises:
        ValueError: a column is of another length, or a site has no number that a book could give.
    """
    if len(event_id) != len(scans) or (said is not None and len(said) != len(scans)):
        raise ValueError(f"{len(scans)} scans need as many event ids; give -1 where there is none")
    if len(scans) and not 0 <= int(scans.site.min()) <= int(scans.site.max()) < _MOST_SITES:
        raise ValueError("a site is not of the site book; number it with History.number first")
    records = np.zeros(len(scans), SCAN)
    records["time_us"] = scans.time_us
    records["place"] = scans.site.astype(np.uint32) * np.uint32(16) + scans.op.astype(np.uint32)
    records["event_id"] = event_id
    if said is not None:
        records["said"] = said
    return records


def unpacked(records: Records, epc: Int32, codes: EpcTable) -> Scans:
    """Scans of records; `row` is -1."""
    return Scans(
        epc=epc,
        site=(records["place"] >> 4).astype(np.int32),
        op=(records["place"] & 15).astype(np.int8),
        time_us=records["time_us"].astype(np.int64),
        row=np.full(len(records), -1, np.int64),
        codes=codes,
    )


def joined(trails: Sequence[bytes | memoryview]) -> tuple[Records, Int32]:
    """Packed trails one after the other, and for each record the number of its trail."""
    size = np.fromiter(map(len, trails), np.int64, len(trails)) // SCAN.itemsize
    records = np.frombuffer(b"".join(trails), SCAN)
    return records, np.repeat(np.arange(len(trails), dtype=np.int32), size)


def in_trail_order(records: Records, epc: Int32) -> tuple[Index, Bool]:
    """Positions by (trail, time, operation, site, event id), and which begin another scan."""
    place, time_us, event_id = (
        np.ascontiguousarray(records[name]) for name in ("place", "time_us", "event_id")
    )
    order = np.lexsort((event_id, place, place & 15, time_us, epc))
    other = np.ones(len(order), bool)
    other[1:] = False
    for column in (epc, time_us, place, event_id):
        ordered = column[order]
        other[1:] |= ordered[1:] != ordered[:-1]
    return order, other


def found(records: Records, epc: Int32, wanted: Records, wanted_epc: Int32) -> Int64:
    """For each wanted scan its place in `records`, -1 where it is not there, int64 (n,)."""
    order, other = in_trail_order(
        np.concatenate([records, wanted]), np.concatenate([epc, wanted_epc])
    )
    head = order[other]
    run = np.empty(len(order), np.intp)
    run[order] = np.cumsum(other) - 1
    place = head[run[len(records) :]]
    return np.where(place < len(records), place, -1).astype(np.int64)


def recalled(
    asked: Asked, records: Records, epc: Int32, table: LotTable, at: Int64, new: Bool
) -> Recall:
    """The answer of a store; the arguments are those of `Recall`, packed."""
    scans = unpacked(records, epc, asked.codes)
    # Of scans given twice the first one counts: it is written last.
    scans.row[at[::-1]] = np.arange(len(at) - 1, -1, -1)
    return Recall(
        scans=scans,
        event_id=records["event_id"].astype(np.int64),
        said=records["said"].copy(),
        table=table,
        at=at,
        new=new,
    )


def table_from(lots: Int64, groups: Sequence[bytes], moves: Sequence[bytes]) -> LotTable:
    """Counters of lots, in the order that `trail.mates.merge` gives them.

    Args:
        lots: int64 (l,), ascending.
        groups: packed groups of each lot.
        moves: packed moves of each lot.
    """
    size = np.fromiter(map(len, groups), np.int64, len(groups)) // GROUP.itemsize
    steps = np.fromiter(map(len, moves), np.int64, len(moves)) // MOVE.itemsize
    group = np.frombuffer(b"".join(groups), GROUP)
    move = np.frombuffer(b"".join(moves), MOVE)
    first = np.cumsum(size) - size
    number = group["number"].astype(np.intp)
    own = np.arange(len(group)) - np.repeat(first, size)
    start = move["start"].astype(np.intp)
    end = move["end"].astype(np.intp)
    if np.array_equal(number, own):
        offset = np.repeat(first, steps)
        start, end = start + offset, end + offset
    else:
        start, end = _places(number, size, start, end, steps)
    moved = move["n"].astype(np.int64)
    pair = start * len(group) + end
    if (pair[1:] < pair[:-1]).any():
        order = np.argsort(pair)
        start, end, moved = start[order], end[order], moved[order]
    return LotTable(
        lot=np.repeat(lots, size),
        time_us=group["time_us"].astype(np.int64),
        site=(group["place"] >> 4).astype(np.int32),
        op=(group["place"] & 15).astype(np.int8),
        n=group["n"].astype(np.int64),
        serial_min=group["low"].astype(np.int64),
        serial_max=group["high"].astype(np.int64),
        start=start,
        end=end,
        moved=moved,
    )


def _places(
    number: Index, size: Int64, start: Index, end: Index, steps: Int64
) -> tuple[Index, Index]:
    """Places of the groups that moves name by their number within a lot."""
    lot = np.repeat(np.arange(len(size)), size)
    most = np.zeros(len(size), np.int64)
    np.maximum.at(most, lot, number + 1)
    base = np.cumsum(most) - most
    place = np.zeros(int(most.sum()), np.intp)
    place[base[lot] + number] = np.arange(len(number))
    offset = np.repeat(base, steps)
    return place[offset + start], place[offset + end]


def packed_lots(table: LotTable) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    """Packed groups and moves of each lot of a table."""
    if not len(table):
        return
    head = np.append(np.flatnonzero(np.diff(table.lot, prepend=table.lot[0] - 1)), len(table))
    offset = np.repeat(head[:-1], np.diff(head))
    group = np.empty(len(table), GROUP)
    group["time_us"] = table.time_us
    group["place"] = table.site.astype(np.uint32) * np.uint32(16) + table.op.astype(np.uint32)
    group["n"] = table.n
    group["low"] = table.serial_min
    group["high"] = table.serial_max
    group["number"] = np.arange(len(table)) - offset
    move = np.empty(len(table.start), MOVE)
    move["start"] = table.start - offset[table.start]
    move["end"] = table.end - offset[table.start]
    move["n"] = table.moved
    cut = np.searchsorted(table.start, head)
    for i, lot in enumerate(table.lot[head[:-1]].tolist()):
        groups = group[head[i] : head[i + 1]].tobytes()
        yield lot, (groups, move[cut[i] : cut[i + 1]].tobytes())
