"""Lots on unknown roads: what a network that knows the roads cannot count on.

A model that has only seen legs as long as usual takes every other country's honest lorry for a
jump. Lots of which each load takes its own time, whatever is usual, show it goods whose mates still
travel with them, and whose times say little.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
import numpy.typing as npt

from trail.facts import previous_of
from trail.order import Index, changes, ends, numbered
from trail.scan import OP_DIRECTION, Bool, Int64, Op, Scans
from trail.trails import sort

MOST: Final = 4.0
"""A load takes up to so many times as long as it did, or a part of it as small."""
TOGETHER: Final = 4
"""So many items in one reading are a load."""


def stretched(scans: Scans, seed: int) -> Scans:
    """The same lots, each load of goods some times as long on the road, from a quarter to four.

    All that follows moves with the load, so that mates stay together. The way to the factory's own
    warehouse stays as it is. Trails that went back, or whose load is not to be told, are left out,
    as are scans that would come after the last of `scans`.

    Args:
        scans: honest scans of whole lots.
        seed: of the draw.
    """
    trails = sort(scans)
    there = trails.scans
    previous = previous_of(trails.starts)
    end = np.flatnonzero((previous >= 0) & (there.op > Op.WMS_IN))
    end = end[there.site[previous[end]] != there.site[end]]
    if not len(end):
        return there.take(np.empty(0, np.intp))
    start = previous[end]
    reading, size = _readings(there)
    load = _loads(reading[start], there.site[end].astype(np.int64), reading[end], size)
    leaves = OP_DIRECTION[there.op[start]] == -1
    few = (size[reading[start]] < TOGETHER) & (size[reading[end]] < TOGETHER)
    told = ((size[load] >= TOGETHER) | (few & leaves)) & (there.op[end] > there.op[start])
    took = there.time_us[end] - there.time_us[start]
    loads, usual = _medians(load, took)
    most = np.log(MOST)
    factor = np.exp(np.random.default_rng(seed).uniform(-most, most, len(loads)))
    shift = np.zeros(len(there), np.int64)
    shift[end] = ((factor - 1) * usual).astype(np.int64)[np.searchsorted(loads, load)]
    total, trail = np.cumsum(shift), numbered(trails.starts)
    time_us = there.time_us + total - total[trails.starts][trail]
    left_out = np.zeros(int(trail[-1]) + 1, bool)
    left_out[trail[end[~told]]] = True
    left_out[trail[1:][(np.diff(time_us) < 0) & ~trails.starts[1:]]] = True
    kept = ~left_out[trail] & (time_us <= there.time_us.max())
    return replace(there, time_us=time_us).take(np.flatnonzero(kept))


def _readings(scans: Scans) -> tuple[Index, Int64]:
    """Number of each scan's reading (lot, time, site, operation), and the scans of each."""
    order = np.lexsort((scans.op, scans.site, scans.time_us, scans.lot))
    columns = (column[order] for column in (scans.lot, scans.time_us, scans.site, scans.op))
    number = np.empty(len(order), np.intp)
    number[order] = numbered(changes(*columns))
    return number, np.bincount(number)


def _loads(start: Index, site: Int64, end: Index, size: Int64) -> Index:
    """The load that each of m moves belongs to, named by the reading at its end.

    An item that was read alone belongs to the load that most of those whom it was last read with
    came to the same site in.

    Args:
        start: intp (m,), reading that the item left.
        site: int64 (m,), where it went.
        end: intp (m,), reading in which it came.
        size: int64, scans of each reading.
    """
    order = np.lexsort((end, site, start))
    new = changes(start[order], site[order], end[order])
    heads = order[new.nonzero()[0]]
    count = np.diff(np.append(new.nonzero()[0], len(order)))
    # Of each start and site, the end that most came in stands last.
    ranked = np.lexsort((count, site[heads], start[heads]))
    of_way = changes(start[heads][ranked], site[heads][ranked])
    most = end[heads[ranked[ends(of_way) - 1]]]
    way = np.empty(len(order), np.intp)
    way[order] = numbered(changes(start[order], site[order]))
    return np.where(size[end] >= TOGETHER, end, most[way])


def _medians(key: Index, value: Int64) -> tuple[npt.NDArray[np.intp], Int64]:
    """The distinct keys, sorted, and the middle one of each key's values."""
    order = np.lexsort((value, key))
    new: Bool = changes(key[order])
    first = new.nonzero()[0]
    return key[order][first], value[order][first + (ends(new) - first) // 2]
