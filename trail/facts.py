"""Facts: what can be said of each scan from its trail, its mates and the network.

Rules and features are both read off these columns, so that neither computes anything twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trail.mates import LotTable, Mates, as_of, placed
from trail.network import BoundNetwork, Network, Steps
from trail.order import Index, numbered
from trail.registry import Registry
from trail.roads import Roads, roads
from trail.scan import (
    DAY_US,
    OP_DIRECTION,
    SITE_TIER_OF_OP,
    Bool,
    Float32,
    Float64,
    Int8,
    Int32,
    Int64,
    Op,
    Scans,
)
from trail.sites import Sites
from trail.trails import CHUNK, Trails

LOOK_BACK: Final = 12
"""Scans of the own trail that repetitions are looked for in; honest trails have at most 10."""


@dataclass(frozen=True)
class Context:
    """What a scan is seen against.

    Attributes:
        sites: the site master that scans refer to.
        network: statistics of earlier data, or None: unknown network, those checks abstain.
        registry: genuine companies and products; an empty one abstains.
    """

    sites: Sites
    network: Network | None
    registry: Registry

    def bound(self) -> BoundContext:
        """The same with every look-up table built; do it once, not per request."""
        network = None if self.network is None else BoundNetwork(self.network, self.sites)
        return BoundContext(self.sites, network, self.registry)


@dataclass(frozen=True)
class BoundContext:
    """A `Context` with its look-up tables."""

    sites: Sites
    network: BoundNetwork | None
    registry: Registry


@dataclass(frozen=True, slots=True)
class Facts:
    """Columns of length n, in trail order; 0 or False where the trail has no earlier scan.

    Attributes:
        op: operation.
        direction: +1 the item arrives, -1 it leaves, 0 it comes into being.
        previous: position of the trail's previous scan, -1 at its first.
        position: scans of the trail before this one.
        gap_s: seconds since the previous scan.
        km: distance from the previous scan, 0 where unknown.
        km_known: the distance is known.
        speed_kmh: km / gap; infinite for a distance in no time.
        same_site: the previous scan was here.
        op_step: operation minus the previous one.
        tier_step: site tier minus the previous site's, 0 where unknown.
        tier_mismatch: the operation does not belong to a site of this tier.
        site_known: the site master has the site.
        again_here: in again without out, or out again without in, at one site.
        in_after_out: arrival at the site that the item has just left.
        out_elsewhere: departure from a site where it was not scanned before it.
        in_without_out: arrival while the last scan was an arrival elsewhere.
        sold_before: sales of this code before this scan.
        sold_elsewhere: the last sale before was at another site.
        since_sale_s: seconds since the last sale before.
        op_before: scans of this code with this operation before.
        repeat_gap_s: seconds since the same operation at the same site; -1 if it never was.
        op_drop: highest operation so far minus this one, 0 or more.
        first_op: operation of the trail's first scan.
        two_km: distance from the scan before the previous one.
        two_gap_s: seconds since then.
        back_and_forth: this site is that scan's site, the previous one is not.
        factory_pair: the step is between a factory and a warehouse.
        commissioned: the trail has its commissioning scan.
        fault: what is wrong with the shape of the code.
        company_unknown: the registry lacks the company.
        product_unknown: the registry lacks the product.
        registry: there is a registry.
        age_days: event time minus manufacture date, days; 0 where that is unreadable.
        serial: serial number of the code.
        mates: see `trail.mates.Mates`.
        steps: see `trail.network.Steps`; None without a network.
        roads: see `trail.roads.Roads`; None without a network.
    """

    op: Int8
    direction: Int8
    previous: Index
    position: Int32
    gap_s: Float64
    km: Float32
    km_known: Bool
    speed_kmh: Float64
    same_site: Bool
    op_step: Int8
    tier_step: Int8
    tier_mismatch: Bool
    site_known: Bool
    again_here: Bool
    in_after_out: Bool
    out_elsewhere: Bool
    in_without_out: Bool
    sold_before: Int32
    sold_elsewhere: Bool
    since_sale_s: Float64
    op_before: Int32
    repeat_gap_s: Float64
    op_drop: Int8
    first_op: Int8
    two_km: Float32
    two_gap_s: Float64
    back_and_forth: Bool
    factory_pair: Bool
    commissioned: Bool
    fault: npt.NDArray[np.uint8]
    company_unknown: Bool
    product_unknown: Bool
    registry: bool
    age_days: Float64
    serial: Int32
    mates: Mates
    steps: Steps | None
    roads: Roads | None


def previous_of(starts: Bool) -> Index:
    """Position of each scan's previous scan in its trail, -1 at a first one."""
    return np.where(starts, -1, np.arange(len(starts)) - 1)


def facts(
    scans: Scans, starts: Bool, context: BoundContext, table: LotTable | None = None
) -> Facts:
    """Facts of scans in trail order.

    Args:
        scans: n scans in trail order, whole lots or (with `table`) any whole trails.
        starts: bool (n,), the scan is the first of its trail.
        context: sites, network and registry.
        table: counters of the lots with these scans counted in; None takes the scans for all
            there is of their lots.
    """
    previous = previous_of(starts)
    codes, epc, site = scans.codes, scans.epc.astype(np.intp), scans.site.astype(np.intp)
    made_day = codes.made_day[epc]
    known = context.registry.at_hand
    shaped = codes.fault == 0
    company_unknown = shaped & known & ~context.registry.has_company(codes)
    product_unknown = shaped & known & ~context.registry.has_product(codes)
    tier, network = context.sites.tier[site], context.network
    there = placed(scans, previous, table)
    return Facts(
        op=scans.op,
        previous=previous,
        fault=codes.fault[epc],
        company_unknown=company_unknown[epc],
        product_unknown=product_unknown[epc],
        registry=known,
        age_days=np.where(made_day >= 0, scans.time_us / DAY_US - made_day, 0.0),
        serial=codes.serial[epc],
        site_known=context.sites.known[site],
        tier_mismatch=(tier >= 0) & (tier != SITE_TIER_OF_OP[scans.op]),
        mates=as_of(there, previous),
        steps=None if network is None else network.steps(scans, previous),
        roads=None if network is None else roads(there.table, there.group, network),
        **_of_step(scans, previous, context.sites),
        **_of_trail(scans, starts),
    )


def facts_of(
    trails: Trails,
    context: Context | BoundContext,
    table: LotTable | None = None,
    size: int = CHUNK,
) -> Iterator[tuple[slice, Facts]]:
    """Facts chunk by chunk, in bounded memory; without `table` a chunk never cuts a lot."""
    bound = context.bound() if isinstance(context, Context) else context
    if table is not None:
        if len(trails.starts):
            whole = slice(0, len(trails.starts))
            yield whole, facts(trails.scans, trails.starts, bound, table)
        return
    for part in trails.chunks(size):
        yield part, facts(trails.part(part), trails.starts[part], bound)


def _of_step(scans: Scans, previous: Index, sites: Sites) -> dict[str, Any]:
    """Facts of a scan and the one before it (and, for clones, the one before that)."""
    has = previous >= 0
    # A first scan is its own one before: it has not moved, and no time has passed.
    before = np.where(has, previous, np.arange(len(previous)))
    two = before[before]
    two_back = two != before
    site = scans.site.astype(np.intp)
    op, op_was, site_was = scans.op, scans.op[before], site[before]
    gap_s = (scans.time_us - scans.time_us[before]) * 1e-6
    km, km_known = _km(site_was, site, has, sites)
    same = has & (site == site_was)
    elsewhere = has & ~same
    direction = OP_DIRECTION[op]
    was = direction[before]
    arrives, leaves, sale = direction == 1, direction == -1, op == Op.SALE
    tier = sites.tier[site]
    tier_was = tier[before]
    with np.errstate(divide="ignore", invalid="ignore"):
        speed = np.where(km > 0, km / (gap_s / 3600), 0.0)
    pair = np.minimum(op, op_was) == Op.AGGREGATION
    pair &= np.maximum(op, op_was) <= Op.WMS_OUT
    return {
        "direction": direction,
        "gap_s": gap_s,
        "km": km,
        "km_known": km_known,
        "speed_kmh": speed,
        "same_site": same,
        "op_step": op - op_was,
        "tier_step": np.where((tier >= 0) & (tier_was >= 0), tier - tier_was, 0),
        "again_here": same & (direction == was) & (direction != 0) & ~sale,
        "in_after_out": same & arrives & (was == -1),
        "out_elsewhere": elsewhere & leaves & ~sale,
        "in_without_out": elsewhere & arrives & (was == 1),
        "two_km": _km(site[two], site, two_back, sites)[0],
        "two_gap_s": np.where(two_back, (scans.time_us - scans.time_us[two]) * 1e-6, 0.0),
        "back_and_forth": two_back & ~same & (site == site[two]),
        "factory_pair": elsewhere & pair,
    }


def _km(start: Index, end: Index, valid: Bool, sites: Sites) -> tuple[Float32, Bool]:
    km = sites.distance_km(start, end)
    known = valid & np.isfinite(km)
    return np.where(known, km, np.float32(0)), known


def _of_trail(scans: Scans, starts: Bool) -> dict[str, Any]:
    """Facts of a scan and all earlier scans of its trail."""
    n = len(scans)
    trail = numbered(starts)
    head = starts.nonzero()[0][trail]
    first_op = scans.op[head]
    columns: dict[str, Any] = {
        "position": (np.arange(n) - head).astype(np.int32),
        "first_op": first_op,
        "commissioned": first_op == Op.AGGREGATION,
        "sold_before": np.zeros(n, dtype=np.int32),
        "sold_elsewhere": np.zeros(n, dtype=bool),
        "since_sale_s": np.zeros(n),
        "op_before": np.zeros(n, dtype=np.int32),
        "repeat_gap_s": np.full(n, -1.0),
        "op_drop": np.zeros(n, dtype=np.int8),
    }
    # While its operations only go up, nothing was repeated, sold before or commissioned late.
    turns = np.flatnonzero(~starts[1:] & (scans.op[1:] <= scans.op[:-1])) + 1
    turned = np.zeros(int(trail[-1]) + 1 if n else 0, dtype=bool)
    turned[trail[turns]] = True
    rows = np.flatnonzero(turned[trail])
    if len(rows):
        of_turned = _of_turned(scans.take(rows), starts[rows], columns["position"][rows])
        for name, column in of_turned.items():
            columns[name][rows] = column
    return columns


def _of_turned(scans: Scans, starts: Bool, position: Int32) -> dict[str, Any]:
    """Facts of a scan and all earlier ones, where the operations of a trail do not only go up."""
    trail = numbered(starts)
    head = starts.nonzero()[0][trail]
    sale = scans.op == Op.SALE
    sold = np.cumsum(sale) - sale
    sold = sold - sold[head]
    sold_any = sold > 0
    where = np.where(sold_any, _last_before(sale), 0)
    top = np.maximum.accumulate(scans.op + trail * 16) - trail * 16
    born = np.cumsum(scans.op == Op.AGGREGATION)
    born_before = born[head] - (scans.op[head] == Op.AGGREGATION)
    op_before, repeat_gap_s = np.zeros(len(scans), dtype=np.int64), np.full(len(scans), -1.0)
    again = np.flatnonzero((position[1:] > 0) & (scans.op[1:] <= top[:-1])) + 1
    op_before[again], repeat_gap_s[again] = _repeats(scans, position, again)
    return {
        "commissioned": born > born_before,
        "sold_before": sold,
        "sold_elsewhere": sold_any & (scans.site[where] != scans.site),
        "since_sale_s": np.where(sold_any, (scans.time_us - scans.time_us[where]) * 1e-6, 0.0),
        "op_before": op_before,
        "repeat_gap_s": repeat_gap_s,
        "op_drop": top - scans.op,
    }


def _last_before(event: Bool) -> Index:
    """Position of the last event strictly before each row, -1 where there is none."""
    at = np.where(event, np.arange(len(event)), -1)
    running = np.maximum.accumulate(at) if len(at) else at
    return np.concatenate([[-1], running[:-1]])[: len(event)]


def _repeats(scans: Scans, position: Int32, rows: Index) -> tuple[Int64, Float64]:
    """Of some rows: earlier scans with the same operation, and seconds since one at this site.

    Args:
        scans: n scans in trail order.
        position: int32 (n,), scans of the trail before each.
        rows: intp (r,), the scans to look back from.

    Returns:
        Both of length r; the seconds are -1 where there is no such scan.
    """
    lag = np.arange(1, LOOK_BACK + 1)
    back = np.maximum(rows[:, None] - lag, 0)
    same_op = (lag <= position[rows, None]) & (scans.op[back] == scans.op[rows, None])
    here = same_op & (scans.site[back] == scans.site[rows, None])
    nearest = rows - lag[here.argmax(axis=1)]
    gap_s = (scans.time_us[rows] - scans.time_us[nearest]) * 1e-6
    return same_op.sum(axis=1), np.where(here.any(axis=1), gap_s, -1.0)
