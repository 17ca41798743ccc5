"""What a set of scans shows of its network: edges, leg times, markets, stays, hours.

Tampering needs it to be plausible in any installation; it is simple counting, on purpose.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from trail.order import changes
from trail.scan import (
    HOUR_US,
    OP_DIRECTION,
    OP_TIER,
    Bool,
    Float64,
    Int8,
    Int32,
    Int64,
    Op,
    Scans,
)
from trail.sites import Sites

USED_LOTS: Final = 2
"""An edge is lawful when goods of this many lots have used it."""
MARKET_SHARE: Final = 0.02
"""A region is a market of a product from this share of its retail arrivals."""
RARE: Final = 1e-4
"""An hour of the week with less than this share of an operation is outside its opening hours."""
WEEK_H: Final = 168
_MONDAY_H: Final = 4 * 24
"""Hours from 1970-01-01, a Thursday, to the first Monday."""
_QUANTILES: Final = 201


@dataclass(frozen=True)
class Estimate:
    """The network as scans show it; k sites, positions as in `Sites`.

    Attributes:
        sites: the site master.
        used: int64 (k, k), lots seen on each leg.
        shipped: by (product number, site), the sites that such goods went to from there, each as
            often as lots of the product did.
        typical_h: float64 (k, k), median hours of a leg, by distance where too few were seen.
        ratio: float64 (q,), quantiles of a leg's hours over its typical hours.
        sold: for each product number, bool (k,), the regions (hub positions) where it is sold.
        stay_h: float64 (10, q), quantiles of the hours before an operation at its site.
        hours: float64 (10, 168), scans by operation and hour of the week, from Monday 0 h.
        region: int32 (k,).
        companies: company numbers seen on many codes.
        missed: share of the readings on their way that goods are lacking.
        end_us: the last event time.
    """

    sites: Sites
    used: Int64
    shipped: dict[tuple[int, int], Int64]
    typical_h: Float64
    ratio: Float64
    sold: dict[int, Bool]
    stay_h: Float64
    hours: Float64
    region: Int32
    companies: frozenset[int]
    missed: float
    end_us: int

    def tier_sites(self, tier: int) -> npt.NDArray[np.intp]:
        """Positions of the sites of a tier."""
        return np.flatnonzero(self.sites.tier == tier)

    def next_sites(self, site: int, tier: int) -> npt.NDArray[np.intp]:
        """Sites of `tier` that `site` ships to."""
        return np.flatnonzero((self.used[site] >= USED_LOTS) & (self.sites.tier == tier))

    def usual_next(self, product: int, site: int, tier: int) -> npt.NDArray[np.integer]:
        """Lawful sites of `tier` in the product's market that `site` ships to.

        Each stands there as often as lots of the product took that way: a way that such goods
        seldom take would tell. Where none is known to, every lawful site stands there once.
        """
        lawful = self.next_sites(site, tier)
        lawful = lawful[self.in_market(product, lawful)]
        often = self.shipped.get((product, site))
        known = lawful[:0] if often is None else often[np.isin(often, lawful)]
        return known if len(known) else lawful

    def in_market(self, product: int, sites: npt.NDArray[np.intp]) -> Bool:
        """Which sites lie in a region where the product is sold."""
        sold = self.sold.get(product)
        region = self.region[sites]
        if sold is None:
            return np.ones(len(sites), dtype=bool)
        return (region >= 0) & sold[region]


def hour_of_week(time_us: Int64) -> Int64:
    """Hours since Monday 0 h, 0 to 167."""
    return (time_us // HOUR_US - _MONDAY_H) % WEEK_H


def estimate(scans: Scans, sites: Sites, order: npt.NDArray[np.intp]) -> Estimate:
    """Count what the scans show.

    Args:
        scans: of whole trails.
        sites: their master.
        order: positions of the scans by (EPC, time).
    """
    epc, site, op = scans.epc[order], scans.site[order], scans.op[order]
    time = scans.time_us[order]
    same = epc[1:] == epc[:-1]
    gap_h = np.diff(time) / HOUR_US
    used, shipped, typical_h, ratio = _legs(scans, sites, epc, site, op, gap_h, same)
    stay = same & (site[1:] == site[:-1]) & (op[1:] == op[:-1] + 1) & (gap_h > 0)
    stay_h = np.zeros((10, _QUANTILES))
    for o in Op:
        hours = gap_h[stay & (op[1:] == o)]
        if len(hours):
            stay_h[o] = np.quantile(hours[:: max(1, len(hours) // 20_000)], _grid())
    hours_of_op = np.bincount(op.astype(np.int64) * WEEK_H + hour_of_week(time), minlength=1680)
    region = sites.region
    company, count = np.unique(scans.codes.company, return_counts=True)
    frequent = company[(company >= 0) & (count > 0.001 * len(scans.codes))]
    return Estimate(
        sites=sites,
        used=used,
        shipped=shipped,
        typical_h=typical_h,
        ratio=ratio,
        sold=_sold(scans, sites, epc, site, op, region),
        stay_h=stay_h,
        hours=hours_of_op.reshape(10, WEEK_H).astype(np.float64),
        region=region,
        companies=frozenset(frequent.tolist()),
        missed=_missed(op, same),
        end_us=int(time.max()) if len(time) else 0,
    )


def _missed(op: Int8, same: Bool) -> float:
    """Share of the operations that follow one another of which one was not read."""
    step = np.diff(op)[same]
    one, two = int((step == 1).sum()), int((step == 2).sum())
    return two / max(one + two, 1)


def _grid() -> Float64:
    return (np.arange(_QUANTILES) + 0.5) / _QUANTILES


def _legs(
    scans: Scans, sites: Sites, epc: Int32, site: Int32, op: Int8, gap_h: Float64, same: Bool
) -> tuple[Int64, dict[tuple[int, int], Int64], Float64, Float64]:
    """Lots on each leg, where each product's lots went, a leg's typical hours, and quantiles of
    hours over typical hours.
    """
    k = len(sites)
    leg = same & (site[1:] != site[:-1]) & (OP_DIRECTION[op[1:]] == 1) & (gap_h > 0)
    leg &= OP_DIRECTION[op[:-1]] <= 0
    step = OP_TIER[op[1:]] - OP_TIER[op[:-1]]
    at = np.flatnonzero(leg & ((step == 0) | (step == 1)))
    edge = site[at].astype(np.int64) * k + site[at + 1]
    lot = scans.codes.lot_key[epc[at]]
    pair = (
        np.unique(np.stack([edge, lot], axis=1), axis=0) if len(at) < 50_000 else _pairs(edge, lot)
    )
    used = np.bincount(pair[:, 0], minlength=k * k).reshape(k, k)
    median = np.full(k * k, np.nan)
    by_edge = np.lexsort((gap_h[at], edge))
    distinct, start, count = np.unique(edge[by_edge], return_index=True, return_counts=True)
    median[distinct] = gap_h[at][by_edge][start + count // 2]
    enough = used.ravel() >= USED_LOTS
    km = _all_km(sites)
    typical = np.where(enough & np.isfinite(median), median, _by_distance(km, median, enough))
    ratio = gap_h[at] / typical[edge]
    ratio = ratio[enough[edge] & (op[at] != Op.AGGREGATION)]
    quantiles = np.quantile(ratio, _grid()) if len(ratio) else np.ones(_QUANTILES)
    product = scans.codes.product[epc[at]][_first_of(lot, pair[:, 1])]
    return used, _shipped(product, pair[:, 0], k), typical.reshape(k, k), quantiles


def _first_of(values: Int64, wanted: Int64) -> npt.NDArray[np.intp]:
    """A position of each wanted value among the values."""
    distinct, first = np.unique(values, return_index=True)
    return first[np.searchsorted(distinct, wanted)]


def _shipped(product: Int32, edge: Int64, k: int) -> dict[tuple[int, int], Int64]:
    """Where each product went from each site, once for each lot; arguments one a lot and leg."""
    start, end = np.divmod(edge, max(k, 1))
    order = np.lexsort((end, start, product))
    product, start, end = product[order], start[order], end[order]
    new = changes(product, start).nonzero()[0]
    keys = zip(product[new].tolist(), start[new].tolist(), strict=True)
    return {key: end[a:b] for key, (a, b) in zip(keys, pairwise([*new, len(end)]), strict=True)}


def _pairs(edge: Int64, lot: Int64) -> Int64:
    """Distinct (edge, lot) rows; faster than np.unique of rows."""
    order = np.lexsort((lot, edge))
    edge, lot = edge[order], lot[order]
    new = np.ones(len(edge), dtype=bool)
    new[1:] = (np.diff(edge) != 0) | (np.diff(lot) != 0)
    return np.stack([edge[new], lot[new]], axis=1)


def _all_km(sites: Sites) -> Float64:
    k = len(sites)
    start, end = np.divmod(np.arange(k * k, dtype=np.int64), max(k, 1))
    km = sites.distance_km(start.astype(np.int32), end.astype(np.int32)).astype(np.float64)
    return np.where(np.isfinite(km), km, 100.0)


def _by_distance(km: Float64, median: Float64, enough: Bool) -> Float64:
    """Typical hours by distance: a straight line through the legs that are known."""
    known = enough & np.isfinite(median)
    if known.sum() < 3 or np.ptp(km[known]) < 1.0:
        level = float(np.median(median[known])) if known.any() else 4.0
        return np.full(len(km), level)
    slope, level = np.polyfit(km[known], median[known], 1)
    slope = max(float(slope), 0.0)
    return np.maximum(level + slope * km, 0.5)


def _sold(
    scans: Scans, sites: Sites, epc: Int32, site: Int32, op: Int8, region: Int32
) -> dict[int, Bool]:
    """Regions in which each product arrives at retailers, or at wholesalers before that."""
    product = scans.codes.product[epc]
    sold: dict[int, Bool] = {}
    for into in (Op.RETAIL_IN, Op.WHOLESALE_IN):
        at = np.flatnonzero((op == into) & (product >= 0) & (region[site] >= 0))
        numbers, which = np.unique(product[at], return_inverse=True)
        table = np.zeros((len(numbers), len(sites)), dtype=np.int64)
        np.add.at(table, (which, region[site[at]]), 1)
        for number, row in zip(numbers.tolist(), table, strict=True):
            if number not in sold and row.sum() >= 100:
                sold[number] = row >= MARKET_SHARE * row.sum()
    return sold


def choose(rng: np.random.Generator, options: Sequence[int] | npt.NDArray[np.integer]) -> int:
    """One of the options, each as likely."""
    return int(options[int(rng.random() * len(options))])
