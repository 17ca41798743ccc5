"""Mates: what the other items of a lot did, as of each scan's own time.

Items of a box share the second of a portal, so a *group* is the scans of one lot with one
(time, site, operation). A *move* is a pair of groups that follow each other in a trail. Both are
counters: they add up over parts of the data in any order, which is what lets a service keep them
for each lot and get the figures of the pipeline. "As of t" includes every scan with a time <= t.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from trail.scan import Int8, Int32, Int64, Op, Scans

Index = npt.NDArray[np.intp]

_NO_SERIAL = np.int64(2**31)


@dataclass(frozen=True, slots=True)
class LotTable:
    """Counters of one or more lots: g groups and p moves.

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

    group: Int64
    group_before: Int64
    together: Int64
    departed: Int64
    departed_here: Int64
    lag_s: npt.NDArray[np.float64]
    lot_commissioned: Int64
    serial_low: Int64
    serial_high: Int64
    commission_gap_s: npt.NDArray[np.float64]
    lot_at_op: Int64
    lot_at_site: Int64


def table_of(scans: Scans, previous: Index, new: npt.NDArray[np.bool_] | None = None) -> LotTable:
    """Counters of scans in trail order.

    Args:
        scans: n scans in trail order.
        previous: intp (n,), position of each trail's previous scan, -1 at a first one.
        new: bool (n,), the scans to count; the others only say where the new ones came from.
    """
    weight = np.ones(len(scans), np.int64) if new is None else new.astype(np.int64)
    return _aggregate(_Occurrences.of_scans(scans, weight), _steps(previous, weight))[0]


def merge(first: LotTable, second: LotTable) -> LotTable:
    """Counters of both parts together; the order of the parts does not matter."""
    occurrences = _Occurrences.of_table(first).then(_Occurrences.of_table(second))
    steps = (
        np.concatenate([first.start, second.start + len(first)]),
        np.concatenate([first.end, second.end + len(first)]),
        np.concatenate([first.moved, second.moved]),
    )
    return _aggregate(occurrences, steps)[0]


def mates(scans: Scans, previous: Index, table: LotTable | None = None) -> Mates:
    """Mates of each scan.

    Args:
        scans: n scans in trail order.
        previous: intp (n,), position of each trail's previous scan, -1 at a first one.
        table: counters of the lots, these scans counted in; None computes them from the scans.
    """
    if table is None:
        one = np.ones(len(scans), np.int64)
        counted, group, move = _aggregate(_Occurrences.of_scans(scans, one), _steps(previous, one))
    else:
        none = np.zeros(len(scans), np.int64)
        occurrences = _Occurrences.of_table(table).then(_Occurrences.of_scans(scans, none))
        start, end, weight = _steps(previous, none)
        steps = (
            np.concatenate([table.start, start + len(table)]),
            np.concatenate([table.end, end + len(table)]),
            np.concatenate([table.moved, weight]),
        )
        counted, group, move = _aggregate(occurrences, steps)
        group, move = group[len(table) :], move[len(table.start) :]
    return _as_of(counted, group, move, previous)


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


def _aggregate(
    what: _Occurrences, steps: tuple[Index, Index, Int64]
) -> tuple[LotTable, Index, Index]:
    """Count groups and moves; also the group of each occurrence and the move of each step."""
    order = _by_group(what)
    new = _changes(what.lot[order], what.time_us[order], what.site[order], what.op[order])
    heads = np.flatnonzero(new)
    group = np.empty(len(order), dtype=np.intp)
    group[order] = np.cumsum(new) - 1
    first = order[heads]
    start, end, weight = steps
    pair = group[start] * len(heads) + group[end]
    pair_order = np.argsort(pair, kind="stable")
    new_pair = _changes(pair[pair_order])
    pair_heads = np.flatnonzero(new_pair)
    move = np.empty(len(pair), dtype=np.intp)
    move[pair_order] = np.cumsum(new_pair) - 1
    distinct = pair[pair_order[pair_heads]]
    table = LotTable(
        lot=what.lot[first],
        time_us=what.time_us[first],
        site=what.site[first],
        op=what.op[first],
        n=_sums(what.weight[order], heads),
        serial_min=np.minimum.reduceat(what.serial_min[order], heads) if len(heads) else _EMPTY,
        serial_max=np.maximum.reduceat(what.serial_max[order], heads) if len(heads) else _EMPTY,
        start=(distinct // max(len(heads), 1)).astype(np.intp),
        end=(distinct % max(len(heads), 1)).astype(np.intp),
        moved=_sums(weight[pair_order], pair_heads),
    )
    return table, group, move


_EMPTY = np.empty(0, dtype=np.int64)


def _by_group(what: _Occurrences) -> Index:
    """Positions sorted by (lot, time, site, operation); one integer key where it fits."""
    if not len(what.lot):
        return np.empty(0, dtype=np.intp)
    place = what.site.astype(np.int64) * 16 + what.op
    lot = np.cumsum(_changes(what.lot)) - 1
    since = what.time_us - what.time_us.min()
    ascending = bool((what.lot[1:] >= what.lot[:-1]).all())
    if not ascending or int(since.max()) >= 2**46 or int(lot[-1]) >= 2**16:
        return np.lexsort((place, what.time_us, what.lot))
    moment = lot * 2**46 + since
    order = np.argsort(moment)
    sorted_moment, sorted_place = moment[order], place[order]
    tied = sorted_moment[1:] == sorted_moment[:-1]
    if (tied & (sorted_place[1:] < sorted_place[:-1])).any():
        rank = np.cumsum(_changes(sorted_moment)) * (int(place.max()) + 1) + sorted_place
        order = order[np.argsort(rank, kind="stable")]
    return order


def _changes(*columns: npt.NDArray[np.generic]) -> npt.NDArray[np.bool_]:
    """True where any of the sorted columns differs from the row before, and at the first row."""
    new = np.zeros(len(columns[0]), dtype=bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def _sums(values: Int64, heads: Index) -> Int64:
    return np.add.reduceat(values, heads) if len(heads) else np.empty(0, dtype=np.int64)


def _running(values: Int64, new_segment: npt.NDArray[np.bool_]) -> Int64:
    """Cumulative sum that starts anew with each segment."""
    total = np.cumsum(values)
    heads = np.flatnonzero(new_segment)
    before = total[heads] - values[heads]
    return total - np.repeat(before, np.diff(np.append(heads, len(values))))


def _last_of_run(new_run: npt.NDArray[np.bool_]) -> Index:
    """Position of the last row of each row's run."""
    heads = np.flatnonzero(new_run)
    ends = np.append(heads[1:], len(new_run))
    return np.repeat(ends - 1, ends - heads)


def _as_of(table: LotTable, group: Index, move: Index, previous: Index) -> Mates:
    """Spread the counters over the scans."""
    n = len(previous)
    before = np.zeros(n, np.int64)
    together, departed, here = before.copy(), before.copy(), before.copy()
    lag_s = np.zeros(n)
    later = np.flatnonzero(previous >= 0)
    if len(later):
        all_departed, all_here, all_lag = _departures(table)
        before[later] = table.n[group[previous[later]]]
        together[later] = table.moved[move]
        departed[later] = all_departed[move]
        here[later] = all_here[move]
        lag_s[later] = all_lag[move]
    commissioned, low, high, gap_s = _commissioning(table)
    return Mates(
        group=table.n[group],
        group_before=before,
        together=together,
        departed=departed,
        departed_here=here,
        lag_s=lag_s,
        lot_commissioned=commissioned[group],
        serial_low=low[group],
        serial_high=high[group],
        commission_gap_s=gap_s[group],
        lot_at_op=_so_far(table, table.op.astype(np.int64))[group],
        lot_at_site=_so_far(table, table.site.astype(np.int64))[group],
    )


def _departures(table: LotTable) -> tuple[Int64, Int64, npt.NDArray[np.float64]]:
    """For each move: mates seen again by its end, those of them at its site, lag behind the first.

    Groups are numbered by (lot, time, ...), so moves sorted by (start, end) are in time order.
    """
    time_us = table.time_us[table.end]
    new_start = _changes(table.start)
    departed = _running(table.moved, new_start)[_last_of_run(_changes(table.start, time_us))]
    heads = np.flatnonzero(new_start)
    first_us = np.repeat(time_us[heads], np.diff(np.append(heads, len(time_us))))
    site = table.site[table.end]
    order = np.lexsort((table.end, site, table.start))
    start, site, time_sorted = table.start[order], site[order], time_us[order]
    run = _running(table.moved[order], _changes(start, site))
    here = np.empty_like(run)
    here[order] = run[_last_of_run(_changes(start, site, time_sorted))]
    return departed, here, np.asarray((time_us - first_us) * 1e-6, dtype=np.float64)


def _commissioning(
    table: LotTable,
) -> tuple[Int64, Int64, Int64, npt.NDArray[np.float64]]:
    """For each group: commissioning scans of its lot so far, their serial range, and the gap."""
    new_lot = _changes(table.lot)
    tie = _last_of_run(_changes(table.lot, table.time_us))
    born = table.op == Op.AGGREGATION
    count = _running(np.where(born, table.n, 0), new_lot)[tie]
    lot = np.cumsum(new_lot) - 1
    base = lot * np.int64(2**33)
    low = np.minimum.accumulate(np.where(born, table.serial_min, _NO_SERIAL) - base) + base
    high = np.maximum.accumulate(np.where(born, table.serial_max, -1) + base) - base
    gap_s = np.zeros(len(table))
    where = np.flatnonzero(born)
    same_lot = lot[where[1:]] == lot[where[:-1]]
    step = (table.time_us[where[1:]] - table.time_us[where[:-1]]) * 1e-6
    gap_s[where[1:]] = np.where(same_lot, step, 0.0)
    return count, low[tie], high[tie], gap_s


def _so_far(table: LotTable, kind: Int64) -> Int64:
    """For each group: scans of its lot with the same kind up to its time."""
    order = np.lexsort((kind, table.lot))
    lot, sorted_kind, time_us = table.lot[order], kind[order], table.time_us[order]
    run = _running(table.n[order], _changes(lot, sorted_kind))
    result = np.empty_like(run)
    result[order] = run[_last_of_run(_changes(lot, sorted_kind, time_us))]
    return result
