"""Mending: the counters of lots after a merge, from those before it.

Only what a merge changes is looked up and put in, so that the cost is that of copying the counters
and does not depend on the order in which scans come. `trail.mates.merge` says the same, slowly.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.history.merging import Merged
from serving.history.packed import Asked, Index
from trail.mates import LotTable
from trail.scan import Bool, Int64

_COLUMNS = ("lot", "time_us", "site", "op", "n", "serial_min", "serial_max")
_NO_SERIAL = 2**31


def mended(table: LotTable, asked: Asked, now: Merged, most_groups: int) -> LotTable:
    """Counters after a merge.

    Counters that would not be positive are dropped: a lot that has expired has forgotten scans of
    a trail that lives.

    Args:
        table: counters before it, of all the lots of `asked`.
        asked: the codes.
        now: the merge.
        most_groups: of a lot; the latest new groups beyond that are not counted.
    """
    if not now.fresh.any():
        return table
    steps = _steps(now)
    rows = np.unique(np.concatenate([np.flatnonzero(now.fresh | ~now.kept), *steps[:2]]))
    change = _Change.of(asked, now, rows)
    table = _counted(table, change, most_groups)
    at, there = _found(table, change)
    group = np.where(there, at, -1)[change.group]
    start, end = (group[np.searchsorted(rows, side)] for side in steps[:2])
    return _moved(table, start, end, steps[2])


def _steps(now: Merged) -> tuple[Index, Index, Int64]:
    """Moves that a merge adds (1) and removes (-1), as positions in its records."""
    same = now.epc[1:] == now.epc[:-1]
    come = np.flatnonzero(same & now.kept[:-1] & (now.fresh[:-1] | now.fresh[1:]))
    old = np.flatnonzero(~now.fresh)
    start, end = old[:-1], old[1:]
    parted = (now.epc[start] == now.epc[end]) & ((end != start + 1) | ~now.kept[start])
    gone = start[parted]
    return (
        np.concatenate([come, gone]),
        np.concatenate([come + 1, end[parted]]),
        np.repeat(np.array([1, -1]), [len(come), len(gone)]),
    )


@dataclass(frozen=True, slots=True)
class _Change:
    """Groups that a merge touches, c of them, by (lot, time, place), and what it adds to them.

    Attributes:
        group: intp, the group of each record looked at.
    """

    lot: Int64
    time_us: Int64
    place: Int64
    n: Int64
    low: Int64
    high: Int64
    group: Index

    @classmethod
    def of(cls, asked: Asked, now: Merged, rows: Index) -> _Change:
        """Of some records of a merge, all that come or go among them."""
        codes = now.epc[rows]
        lot = asked.codes.lot_key[codes]
        time_us = now.records["time_us"][rows]
        place = now.records["place"][rows].astype(np.int64)
        fresh = now.fresh[rows]
        n = (fresh & now.kept[rows]).astype(np.int64)
        n -= ~fresh & ~now.kept[rows]
        serial = asked.codes.serial[codes].astype(np.int64)
        order = np.lexsort((place, time_us, lot))
        lot, time_us, place = lot[order], time_us[order], place[order]
        other = np.ones(len(order), bool)
        other[1:] = (
            (lot[1:] != lot[:-1]) | (time_us[1:] != time_us[:-1]) | (place[1:] != place[:-1])
        )
        head = np.flatnonzero(other)
        group = np.empty(len(order), np.intp)
        group[order] = np.cumsum(other) - 1
        n, serial, fresh = n[order], serial[order], fresh[order]
        return cls(
            lot=lot[head],
            time_us=time_us[head],
            place=place[head],
            n=np.add.reduceat(n, head),
            low=np.minimum.reduceat(np.where(fresh, serial, _NO_SERIAL), head),
            high=np.maximum.reduceat(np.where(fresh, serial, -1), head),
            group=group,
        )


def _found(table: LotTable, change: _Change) -> tuple[Index, Bool]:
    """Where the groups of a change are in a table or should be put, and which are there."""
    first = np.searchsorted(table.lot, change.lot)
    last = np.searchsorted(table.lot, change.lot, side="right")
    at = np.empty(len(change.lot), np.intp)
    head = np.flatnonzero(np.diff(change.lot, prepend=-1)).tolist()
    for low, high in zip(head, [*head[1:], len(at)], strict=True):
        times = table.time_us[first[low] : last[low]]
        at[low:high] = first[low] + times.searchsorted(change.time_us[low:high])
    there = np.zeros(len(at), bool)
    looking = np.flatnonzero(at < last)
    while len(looking):  # several groups of one time are few
        here = at[looking]
        place = table.site[here].astype(np.int64) * 16 + table.op[here]
        tied = table.time_us[here] == change.time_us[looking]
        there[looking] = tied & (place == change.place[looking])
        looking = looking[tied & (place < change.place[looking])]
        at[looking] += 1
        looking = looking[at[looking] < last[looking]]
    return at, there


def _counted(table: LotTable, change: _Change, most: int) -> LotTable:
    """A table with the groups of a change counted in."""
    at, there = _found(table, change)
    old = at[there]
    n, low, high = table.n.copy(), table.serial_min.copy(), table.serial_max.copy()
    n[old] += change.n[there]
    low[old] = np.minimum(low[old], change.low[there])
    high[old] = np.maximum(high[old], change.high[there])
    table = replace(table, n=n, serial_min=low, serial_max=high)
    new = ~there & (change.n > 0)
    if (n[old] <= 0).any():
        alive = n > 0
        table = _part(table, alive, np.ones(len(table.start), bool))
        at = at - np.append(0, np.cumsum(~alive))[at]
    new &= _room(table, change, new, most)
    return _inserted(table, change, at[new], new)


def _room(table: LotTable, change: _Change, new: Bool, most: int) -> Bool:
    """Which of the new groups of a change still find room in their lots."""
    first = np.searchsorted(table.lot, change.lot)
    size = np.searchsorted(table.lot, change.lot, side="right") - first
    before: Int64 = np.cumsum(new) - new
    head = np.searchsorted(change.lot, change.lot)
    return size + before - before[head] < most


def _inserted(table: LotTable, change: _Change, at: Index, new: Bool) -> LotTable:
    """A table with the new groups of a change before the groups at `at`; moves keep theirs."""
    if not len(at):
        return table
    there = at + np.arange(len(at))
    old = np.ones(len(table) + len(at), bool)
    old[there] = False
    place = change.place[new]
    values = (
        change.lot[new],
        change.time_us[new],
        place >> 4,
        place & 15,
        change.n[new],
        change.low[new],
        change.high[new],
    )
    columns = {
        name: _spread(getattr(table, name), old, value)
        for name, value in zip(_COLUMNS, values, strict=True)
    }
    number = np.flatnonzero(old)
    return LotTable(**columns, start=number[table.start], end=number[table.end], moved=table.moved)


def _spread(column: npt.NDArray[Any], old: Bool, value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A column with values put in where it is not `old`."""
    result = np.empty(len(old), column.dtype)
    result[old] = column
    result[~old] = value
    return result


def _moved(table: LotTable, start: Index, end: Index, weight: Int64) -> LotTable:
    """A table with some moves added to its own; moves of groups that are not there (-1) are not."""
    known = (start >= 0) & (end >= 0)
    steps: Int64 = start[known] * len(table) + end[known]
    pair, row = np.unique(steps, return_inverse=True)
    change = np.bincount(row, weight[known], len(pair)).astype(np.int64)
    own = table.start * len(table) + table.end
    at = np.searchsorted(own, pair)
    there = np.zeros(len(pair), bool)
    inside = at < len(own)
    there[inside] = own[at[inside]] == pair[inside]
    moved = table.moved.copy()
    moved[at[there]] += change[there]
    new = ~there & (change > 0)
    old = np.ones(len(own) + int(new.sum()), bool)
    old[at[new] + np.arange(len(old) - len(own))] = False
    result = replace(
        table,
        start=_spread(table.start, old, pair[new] // max(len(table), 1)),
        end=_spread(table.end, old, pair[new] % max(len(table), 1)),
        moved=_spread(moved, old, change[new]),
    )
    move = result.moved > 0
    return result if move.all() else _part(result, np.ones(len(table), bool), move)


def _part(table: LotTable, alive: Bool, move: Bool) -> LotTable:
    """Some groups, and those of some moves that have both ends among them."""
    move = move & alive[table.start] & alive[table.end]
    place = np.cumsum(alive) - 1
    return LotTable(
        **{name: getattr(table, name)[alive] for name in _COLUMNS},
        start=place[table.start[move]],
        end=place[table.end[move]],
        moved=table.moved[move],
    )
