"""Trails: scans sorted by (lot, EPC, time), their boundaries, and chunks cut between lots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from trail.order import Index, changes, numbered, order_by
from trail.scan import Bool, Int32, Int64, Scans

CHUNK: Final = 64_000
"""Scans a chunk: so many that the cost of a call is lost, so few that caches hold their columns."""


@dataclass(frozen=True, slots=True)
class Trails:
    """Scans in trail order.

    Attributes:
        scans: the scans, sorted by (lot, EPC, time, operation, site); n of them.
        order: intp (n,), where each sorted scan stood in the input.
        starts: bool (n,), the scan is the first of its trail.
        lot_starts: bool (n,), the scan is the first of its lot.
    """

    scans: Scans
    order: Index
    starts: Bool
    lot_starts: Bool

    @property
    def offsets(self) -> Int64:
        """Boundaries of the trails, int64 (trails + 1,)."""
        return np.append(np.flatnonzero(self.starts), len(self.starts)).astype(np.int64)

    def part(self, where: slice) -> Scans:
        """The scans of a slice, with a table of their own codes only, one code a trail."""
        scans, starts = self.scans.take(where), self.starts[where]
        codes = scans.codes.take(scans.epc[starts])
        return replace(scans, epc=(np.cumsum(starts) - 1).astype(np.int32), codes=codes)

    def chunks(self, size: int = CHUNK) -> Iterator[slice]:
        """Slices of about `size` scans that never cut a lot."""
        bounds = np.append(np.flatnonzero(self.lot_starts), len(self.starts))
        start = 0
        while start < len(self.starts):
            nearest = int(np.searchsorted(bounds, start + size, side="right")) - 1
            stop = int(bounds[nearest])
            if stop <= start:
                stop = int(bounds[nearest + 1])
            yield slice(start, stop)
            start = stop


def sort(scans: Scans) -> Trails:
    """Bring scans into trail order; the order of the input has no influence but on exact ties."""
    codes = scans.codes
    by_rank = order_by(codes.serial + 1, codes.lot_key)
    rank = np.empty(len(codes), dtype=np.int32)
    rank[by_rank] = np.arange(len(codes), dtype=np.int32)
    lot_of_rank = numbered(changes(codes.lot_key[by_rank]))
    unsorted = rank[scans.epc]
    order = order_by(unsorted)
    ranked = unsorted[order]
    starts = changes(ranked)
    in_order = scans.take(order)
    disorder = ~starts[1:] & (in_order.time_us[1:] <= in_order.time_us[:-1])
    if disorder.any():
        order = _sort_again(scans, ranked, order, np.flatnonzero(disorder))
        in_order = scans.take(order)
    return Trails(in_order, order, starts, changes(lot_of_rank[ranked]))


def _sort_again(scans: Scans, ranked: Int32, order: Index, disorder: Index) -> Index:
    """Sort only the trails that are out of time order or have ties; most inputs have few."""
    wrong = np.zeros(int(ranked[-1]) + 1, dtype=bool)
    wrong[ranked[disorder]] = True
    places = np.flatnonzero(wrong[ranked])
    part = order[places]
    again = np.lexsort((scans.site[part], scans.op[part], scans.time_us[part], ranked[places]))
    order = order.copy()
    order[places] = part[again]
    return order
