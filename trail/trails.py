"""Trails: scans sorted by (lot, EPC, time), their boundaries, and chunks cut between lots."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from trail.scan import Bool, Int32, Int64, Scans

CHUNK: Final = 20_000
"""Scans a chunk: its columns then stay in the processor's cache (`python -m bench kernel`)."""

Index = npt.NDArray[np.intp]


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
    rank = _rank_of_codes(scans)
    scan_rank = rank[scans.epc]
    order = np.argsort(scan_rank, kind="stable")
    ranked = scan_rank[order]
    time_us = scans.time_us[order]
    same = ranked[1:] == ranked[:-1]
    step = time_us[1:] - time_us[:-1]
    if (same & (step <= 0)).any():
        order = _sort_again(scans, scan_rank, order, same, step)
        ranked = scan_rank[order]
    sorted_scans = scans.take(order)
    starts = np.ones(len(scans), dtype=bool)
    starts[1:] = ranked[1:] != ranked[:-1]
    lot = sorted_scans.lot
    lot_starts = np.ones(len(scans), dtype=bool)
    lot_starts[1:] = lot[1:] != lot[:-1]
    return Trails(sorted_scans, order, starts, lot_starts)


def _rank_of_codes(scans: Scans) -> Int32:
    """Place of each code in the order of (lot, serial, code), int32 (m,)."""
    codes = scans.codes
    order = np.lexsort((codes.serial, codes.lot_key))
    rank = np.empty(len(codes), dtype=np.int32)
    rank[order] = np.arange(len(codes), dtype=np.int32)
    return rank


def _sort_again(scans: Scans, scan_rank: Int32, order: Index, same: Bool, step: Int64) -> Index:
    """Sort only the trails that are out of time order or have ties; most inputs have few."""
    ranked = scan_rank[order]
    wrong = np.zeros(int(scan_rank.max()) + 1, dtype=bool)
    wrong[ranked[1:][same & (step <= 0)]] = True
    places = np.flatnonzero(wrong[ranked])
    part = order[places]
    again = np.lexsort((scans.site[part], scans.op[part], scans.time_us[part], scan_rank[part]))
    order = order.copy()
    order[places] = part[again]
    return order
