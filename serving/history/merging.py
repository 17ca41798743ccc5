"""Merging: given scans put among the remembered ones, and the counters of their lots mended."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from serving.history.keeping import Keeping
from serving.history.packed import Asked, Index, Records, in_trail_order, unpacked
from trail.facts import previous_of
from trail.mates import LotTable, merge, table_of
from trail.scan import Bool, Int32, Int64, Op


@dataclass(frozen=True, slots=True)
class Merged:
    """Trails with the given scans put in; r records in trail order.

    Attributes:
        records: the remembered and the given scans.
        epc: int32 (r,), row of their code.
        kept: bool (r,), stays in the store: not among the oldest of a trail that is too long.
        at: int64 (n,), place of each given scan in `records`.
        new: bool (n,), the given scan was not remembered, nor given before in this call.
        changed: bool (m,), the trail has a new scan.
        new_sale: bool (m,), and that is a sale.
        sold: bool (m,), a sale is among the scans that stay.
    """

    records: Records
    epc: Int32
    kept: Bool
    at: Int64
    new: Bool
    changed: Bool
    new_sale: Bool
    sold: Bool


def merged(
    asked: Asked, remembered: Records, epc: Int32, given: Records, keeping: Keeping
) -> Merged:
    """Put given scans among remembered ones.

    Args:
        asked: the codes of the given scans.
        remembered: what was remembered of these codes, trail after trail.
        epc: row of the code of each of them.
        given: n scans.
        keeping: how long a trail may be.
    """
    every = np.concatenate([remembered, given])
    every_epc = np.concatenate([epc, asked.epc])
    order, other = in_trail_order(every, every_epc)
    head = order[other]
    run = np.empty(len(order), np.intp)
    run[order] = np.cumsum(other) - 1
    records, code = every[head], every_epc[head]
    is_new = head >= len(remembered)
    new = np.zeros(len(given), bool)
    new[head[is_new] - len(remembered)] = True
    size = np.bincount(code, minlength=len(asked))
    position = np.arange(len(code)) - np.repeat(np.cumsum(size) - size, size)
    kept = position >= size[code] - keeping.most_scans
    sale = (records["place"] & 15) == Op.SALE
    return Merged(
        records=records,
        epc=code,
        kept=kept,
        at=run[len(remembered) :].astype(np.int64),
        new=new,
        changed=_any(code[is_new], len(asked)),
        new_sale=_any(code[is_new & sale], len(asked)),
        sold=_any(code[kept & sale], len(asked)),
    )


def mended(
    table: LotTable, asked: Asked, remembered: Records, epc: Int32, now: Merged, keeping: Keeping
) -> LotTable:
    """Counters of the lots after a merge, from those before it.

    The changed trails are taken out of the counters as they were and put in as they are. Counters
    that would not be positive are dropped: an expired lot has forgotten scans of a living trail.
    """
    before = now.changed[epc]
    after = now.kept & now.changed[now.epc]
    if not after.any() and not before.any():
        return table
    gone = _counted(asked, remembered[before], epc[before])
    come = _counted(asked, now.records[after], now.epc[after])
    change = merge(replace(gone, n=-gone.n, moved=-gone.moved), come)
    result = _positive(merge(table, change))
    return _bounded(result, table, keeping.most_groups)


def _any(code: Int32, m: int) -> Bool:
    found = np.zeros(m, bool)
    found[code] = True
    return found


def _counted(asked: Asked, records: Records, epc: Int32) -> LotTable:
    starts = np.ones(len(epc), bool)
    starts[1:] = epc[1:] != epc[:-1]
    return table_of(unpacked(records, epc, asked.codes), previous_of(starts))


def _positive(table: LotTable) -> LotTable:
    group, move = table.n > 0, table.moved > 0
    return table if group.all() and move.all() else _part(table, group, move)


def _part(table: LotTable, group: Bool, move: Bool) -> LotTable:
    """Some groups, and those of some moves that have both ends among them."""
    move = move & group[table.start] & group[table.end]
    place: Index = np.cumsum(group) - 1
    columns = ("lot", "time_us", "site", "op", "n", "serial_min", "serial_max")
    return LotTable(
        **{name: getattr(table, name)[group] for name in columns},
        start=place[table.start[move]],
        end=place[table.end[move]],
        moved=table.moved[move],
    )


def _bounded(table: LotTable, before: LotTable, most: int) -> LotTable:
    """Without the latest new groups of lots that have too many."""
    _, first, count = np.unique(table.lot, return_index=True, return_counts=True)
    if not len(count) or int(count.max()) <= most:
        return table
    old = set(_names(before, slice(None)))
    group = np.ones(len(table), bool)
    for i in np.flatnonzero(count > most).tolist():
        part = slice(first[i], first[i] + count[i])
        new = [at for at, name in enumerate(_names(table, part), first[i]) if name not in old]
        room = max(most - (int(count[i]) - len(new)), 0)
        group[new[room:]] = False
    return _part(table, group, np.ones(len(table.start), bool))


def _names(table: LotTable, part: slice) -> list[tuple[int, int, int, int]]:
    columns = (table.lot, table.time_us, table.site, table.op)
    return list(zip(*(column[part].tolist() for column in columns), strict=True))
