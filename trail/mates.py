"""Mates: what the other items of a lot did, as of each scan's own time.

Items of a box share the second of a portal, so a *group* is the scans of one lot with one
(time, site, operation). A *move* is a pair of groups that follow each other in a trail. Both are
counters: they add up over parts of the data in any order, which is what lets a service keep them
for each lot and get the figures of the pipeline. "As of t" includes every scan with a time <= t.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from trail.order import Index, changes, ends, numbered, order_by
from trail.scan import SECOND_US, Bool, Float64, Int8, Int32, Int64, Op, Scans

_NO_SERIAL: Final = np.int64(2**31)


@dataclass(frozen=True, slots=True)
class LotTable:
    """Counters of one or more lots: g groups and p moves.

    Groups are distinct and sorted by (lot, time, site * 16 + operation), moves by (start, end).

    Attributes:
        lot: int64 (g,), lot key.
        time_us: int64 (g,).
        site: int32 (g,).
        op: int8 (g,).
        n: int64 (g,), scans in the group.
        serial_min: int64 (g,), smallest serial number in the group.
        serial_max: int64 (g,), largest.
        start: intp (p,), group that the items left.
        end: intp (p,), group in which they were seen next.
        moved: int64 (p,), items that made this move.
    """

    lot: Int64
    time_us: Int64
    site: Int32
    op: Int8
    n: Int64
    serial_min: Int64
    serial_max: Int64
    start: Index
    end: Index
    moved: Int64

    def __len__(self) -> int:
        return len(self.lot)


@dataclass(frozen=True, slots=True)
class Mates:
    """What is known of each scan's mates; columns of length n unless said otherwise.

    Attributes:
        group: items scanned in the same second at the same portal, this one included.
        group_before: the same for the item's previous scan; 0 at its first.
        together: items of the previous group that came along in this one, this one included.
        departed: items of the previous group that were seen again by now, this one included.
        departed_here: those of them seen at this scan's site.
        lag_s: seconds since the first of the previous group was seen again.
        lot_commissioned: commissioning scans of the lot so far.
        serial_low: smallest serial number commissioned so far, or 2^31.
        serial_high: largest serial number commissioned so far, or -1.
        commission_gap_s: at a commissioning scan, seconds since the lot's previous one; else 0.
        lot_at_op: scans of the lot with this operation so far, this group included.
        lot_at_site: scans of the lot at this site so far, this group included.
    """

    group: Int32
    group_before: Int32
    together: Int32
    departed: Int32
    departed_here: Int32
    lag_s: npt.NDArray[np.float64]
    lot_commissioned: Int32
    serial_low: Int64
    serial_high: Int64
    commission_gap_s: npt.NDArray[np.float64]
    lot_at_op: Int32
    lot_at_site: Int32


def table_of(scans: Scans, previous: Index, new: npt.NDArray[np.bool_] | None = None) -> LotTable:
    """Counters of scans in trail order.

    Args:
        scans: n scans in trail order.
        previous: intp (n,), position of each trail's previous scan, -1 at a first one.
        new: bool (n,), the scans to count; the others only say where the new ones came from.
    """
    weight = np.ones(len(scans), np.int64) if new is None else new.astype(np.int64)
    return _aggregate(_Occurrences.of_scans(scans, weight), _steps(previous, weight)).table


def merge(first: LotTable, second: LotTable) -> LotTable:
    """Counters of both parts together; the order of the parts does not matter."""
    occurrences = _Occurrences.of_table(first).then(_Occurrences.of_table(second))
    steps = (
        np.concatenate([first.start, second.start + len(first)]),
        np.concatenate([first.end, second.end + len(first)]),
        np.concatenate([first.moved, second.moved]),
    )
    return _aggregate(occurrences, steps).table


def mates(scans: Scans, previous: Index, table: LotTable | None = None) -> Mates:
    """Mates of each scan.

    Args:
        scans: n scans in trail order.
        previous: intp (n,), position of each trail's previous scan, -1 at a first one.
        table: counters of the lots, these scans counted in; None computes them from the scans.
    """
    return as_of(placed(scans, previous, table), previous)


class Placed(NamedTuple):
    """Scans in the counters of their lots.

    Attributes:
        table: the counters.
        group: intp (n,), the group of each scan.
        move: intp (m,), the move of each of the m steps of the trails.
        counted: the same groups with only those moves that `move` numbers.
    """

    table: LotTable
    group: Index
    move: Index
    counted: LotTable


def placed(scans: Scans, previous: Index, table: LotTable | None = None) -> Placed:
    """Find scans in counters of their lots; see `mates`."""
    if table is None:
        one = np.ones(len(scans), np.int64)
        return _aggregate(_Occurrences.of_scans(scans, one), _steps(previous, one))
    return _found(scans, previous, table) or _put_in(scans, previous, table)


def _found(scans: Scans, previous: Index, table: LotTable) -> Placed | None:
    """Look scans up in counters of their lots; None where one of them is not there."""
    group = _group_in(table, scans)
    if group is None:
        return None
    start, end, _ = _steps(previous, group)
    start, end = group[start], group[end]
    counted = _moves_from(table, start)
    moves = counted.start * len(table) + counted.end
    wanted = start * len(table) + end
    move = np.searchsorted(moves, wanted)
    if (move == len(moves)).any() or (moves[move] != wanted).any():
        return None
    return Placed(table, group, move, counted)


def _moves_from(table: LotTable, start: Index) -> LotTable:
    """The same groups, with the moves out of some of them only."""
    asked = np.zeros(len(table), dtype=bool)
    asked[start] = True
    kept = np.flatnonzero(asked[table.start])
    return replace(table, start=table.start[kept], end=table.end[kept], moved=table.moved[kept])


def _group_in(table: LotTable, scans: Scans) -> Index | None:
    """Group of each scan, intp (n,); None where one is not there."""
    if not len(table) or not len(scans):
        return None
    heads = changes(table.lot)
    lots, lot_key = table.lot[heads], scans.lot
    lot = np.minimum(lots.searchsorted(lot_key), len(lots) - 1)
    first_us = table.time_us.min()
    span = int(table.time_us.max() - first_us) + 1
    since = scans.time_us - first_us
    if (lots[lot] != lot_key).any() or ((since < 0) | (since >= span)).any():
        return None
    if span * len(lots) >= 2**63:
        return None
    moments = numbered(heads) * span + (table.time_us - first_us)
    moment = lot * span + since
    group: Index = moments.searchsorted(moment)
    # Few groups share their lot and second, and so stand in a row.
    while True:
        inside = np.minimum(group, len(table) - 1)
        other = (table.site[inside] != scans.site) | (table.op[inside] != scans.op)
        if (moments[inside] != moment).any() or (group >= len(table)).any():
            return None
        if not other.any():
            return group
        group = group + other


def _put_in(scans: Scans, previous: Index, table: LotTable) -> Placed:
    """Put scans without weight into counters that may lack some of them."""
    none = np.zeros(len(scans), np.int64)
    occurrences = _Occurrences.of_table(table).then(_Occurrences.of_scans(scans, none))
    start, end, weight = _steps(previous, none)
    steps = (
        np.concatenate([table.start, start + len(table)]),
        np.concatenate([table.end, end + len(table)]),
        np.concatenate([table.moved, weight]),
    )
    whole = _aggregate(occurrences, steps)
    group, move = whole.group[len(table) :], whole.move[len(table.start) :]
    return Placed(whole.table, group, move, whole.table)


@dataclass(frozen=True, slots=True)
class _Occurrences:
    """Things that happened in a group: scans, or groups counted before."""

    lot: Int64
    time_us: Int64
    site: Int32
    op: Int8
    weight: Int64
    serial_min: Int64
    serial_max: Int64

    @classmethod
    def of_scans(cls, scans: Scans, weight: Int64) -> _Occurrences:
        serial = scans.codes.serial[scans.epc].astype(np.int64)
        return cls(scans.lot, scans.time_us, scans.site, scans.op, weight, serial, serial)

    @classmethod
    def of_table(cls, table: LotTable) -> _Occurrences:
        return cls(
            table.lot,
            table.time_us,
            table.site,
            table.op,
            table.n,
            table.serial_min,
            table.serial_max,
        )

    def then(self, other: _Occurrences) -> _Occurrences:
        return _Occurrences(
            *(
                np.concatenate([getattr(self, name), getattr(other, name)])
                for name in _Occurrences.__slots__
            )
        )


def _steps(previous: Index, weight: Int64) -> tuple[Index, Index, Int64]:
    end = np.flatnonzero(previous >= 0)
    return previous[end], end, weight[end]


def _aggregate(what: _Occurrences, steps: tuple[Index, Index, Int64]) -> Placed:
    """Count groups and moves."""
    order, new = _by_group(what)
    heads = new.nonzero()[0]
    group = np.empty(len(order), dtype=np.intp)
    group[order] = numbered(new)
    first = order[heads]
    start, end, weight = steps
    left, reached = group[start], group[end]
    by_move = order_by(reached, left)
    left, reached = left[by_move], reached[by_move]
    new_move = changes(left, reached)
    move_heads = new_move.nonzero()[0]
    move = np.empty(len(by_move), dtype=np.intp)
    move[by_move] = numbered(new_move)
    serial_min, serial_max = what.serial_min[order], what.serial_max[order]
    table = LotTable(
        lot=what.lot[first],
        time_us=what.time_us[first],
        site=what.site[first],
        op=what.op[first],
        n=_sums(what.weight[order], heads),
        serial_min=np.minimum.reduceat(serial_min, heads) if len(heads) else serial_min,
        serial_max=np.maximum.reduceat(serial_max, heads) if len(heads) else serial_max,
        start=left[move_heads],
        end=reached[move_heads],
        moved=_sums(weight[by_move], move_heads),
    )
    return Placed(table, group, move, table)


def _by_group(what: _Occurrences) -> tuple[Index, Bool]:
    """Order by (lot, time, site, operation), and True at the first of each group."""
    if not len(what.lot):
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=bool)
    if (what.lot[1:] >= what.lot[:-1]).all():
        lot = numbered(changes(what.lot))
    else:
        lot = np.unique(what.lot, return_inverse=True)[1]
    time = _ticks(what.time_us)
    place = what.site.astype(np.int64) * 16 + what.op
    order = order_by(place, time, lot)
    return order, changes(lot[order], time[order], place[order])


def _ticks(time_us: Int64) -> Int64:
    """Times as whole numbers from 0, the smaller the quicker to sort: seconds if they can be."""
    since = time_us - time_us.min()
    seconds: Int64 = since // SECOND_US
    return seconds if (seconds * SECOND_US == since).all() else since


def _sums(values: Int64, heads: Index) -> Int64:
    return np.add.reduceat(values, heads) if len(heads) else np.empty(0, dtype=np.int64)


def as_of(there: Placed, previous: Index) -> Mates:
    """Spread the counters over the scans."""
    _, group, move, table = there
    of_step = np.full(len(previous), -1)
    of_step[previous >= 0] = move
    departed, here, lag_s = _departures(table)
    lot = numbered(changes(table.lot))
    new_moment = changes(table.lot, table.time_us)
    moment = numbered(new_moment)
    last = (ends(new_moment) - 1)[moment]
    commissioned, low, high, gap_s = _commissioning(table, lot, last)
    return Mates(
        group=_spread(table.n, group),
        group_before=_spread(table.n[table.start], of_step),
        together=_spread(table.moved, of_step),
        departed=_spread(departed, of_step),
        departed_here=_spread(here, of_step),
        lag_s=np.concatenate((lag_s, [0.0]))[of_step],
        lot_commissioned=_spread(commissioned, group),
        serial_low=low[group],
        serial_high=high[group],
        commission_gap_s=gap_s[group],
        lot_at_op=_spread(_so_far(table.n, table.op, lot, moment), group),
        lot_at_site=_spread(_so_far(table.n, table.site, lot, moment), group),
    )


def _spread(counts: Int64, row: Index) -> Int32:
    """The count of each row, 0 for row -1; 32 bits, since so many columns fill the caches."""
    narrow = np.zeros(len(counts) + 1, dtype=np.int32)
    narrow[:-1] = counts
    return narrow[row]


def _up_to(values: Int64, new_run: Bool, new_tie: Bool) -> Int64:
    """Sum of a run's values from its start to the end of each row's tie.

    Args:
        values: int64 (m,).
        new_run: bool (m,), the row starts a run.
        new_tie: bool (m,), the row starts a tie; every start of a run starts one, too.
    """
    total = np.concatenate(([0], values.cumsum()))
    before = total[new_run.nonzero()[0]][numbered(new_run)]
    result: Int64 = total[ends(new_tie)][numbered(new_tie)] - before
    return result


def _departures(table: LotTable) -> tuple[Int64, Int64, Float64]:
    """For each move: mates seen again by its end, those of them at its site, lag behind the first.

    Groups are numbered by (lot, time, ...), so moves sorted by (start, end) are in time order.
    """
    time_us, site = table.time_us[table.end], table.site[table.end]
    new_start = changes(table.start)
    departed = _up_to(table.moved, new_start, new_start | changes(time_us))
    first_us = time_us[new_start.nonzero()[0]][numbered(new_start)]
    order = order_by(site, table.start)
    run = changes(table.start[order], site[order])
    here = np.empty_like(departed)
    here[order] = _up_to(table.moved[order], run, run | changes(time_us[order]))
    return departed, here, np.multiply(time_us - first_us, 1e-6, dtype=np.float64)


def _commissioning(table: LotTable, lot: Index, last: Index) -> tuple[Int64, Int64, Int64, Float64]:
    """For each group: commissioning scans of its lot so far, their serial range, and the gap."""
    born = table.op == Op.AGGREGATION
    counted = np.where(born, table.n, 0)
    total = counted.cumsum()
    before = (total - counted)[changes(lot)][lot]
    # Serial numbers stay below 2^33, so that those of each lot lie apart from the next one's.
    base = lot * np.int64(2**33)
    low = np.minimum.accumulate(np.where(born, table.serial_min, _NO_SERIAL) - base) + base
    high = np.maximum.accumulate(np.where(born, table.serial_max, -1) + base) - base
    gap_s = np.zeros(len(table))
    where = born.nonzero()[0]
    later, earlier = where[1:], where[:-1]
    step = (table.time_us[later] - table.time_us[earlier]) * 1e-6
    gap_s[later] = np.where(lot[later] == lot[earlier], step, 0.0)
    return total[last] - before, low[last], high[last], gap_s


def _so_far(n: Int64, kind: npt.NDArray[np.integer[Any]], lot: Index, moment: Index) -> Int64:
    """For each group: scans of its lot with the same kind up to its time."""
    order = order_by(kind, lot)
    run = changes(lot[order], kind[order])
    result = np.empty_like(n)
    result[order] = _up_to(n[order], run, run | changes(moment[order]))
    return result
