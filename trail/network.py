"""The network: how long legs and dwells take, which edges are used, where products are sold.

It is counted on honest scans of earlier data, travels inside the model bundle as plain JSON, and
refers to sites by `location_id`, so that it can be bound to any site master. What it has never
seen it does not judge: unknown sites give "not known", never "not used".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trail.scan import Float32, Int32, Int64, Scans
from trail.sites import Sites

Index = npt.NDArray[np.intp]

_OPS: Final = 10
_KM_EDGES: Final = np.array([0.5, 5, 20, 40, 80, 120, 180, 260, 360, 500, 800])
_KM_BINS: Final = len(_KM_EDGES) + 2
MIN_ROUTE: Final = 30
"""Steps a route needs before its own distribution is used instead of its distance class's."""
MIN_SITE: Final = 50
"""Departures a site needs before an edge that is missing there means "never used"."""
MIN_PRODUCT: Final = 200
"""Scans downstream of the hubs a product needs before its markets are known."""
_LOW: Final = 0.01


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Distribution of the time of a step (previous scan to this one), one row a kind of step.

    Attributes:
        key: int64 (r,), sorted.
        n: int64 (r,), steps counted.
        center: float64 (r,), median of log(1 + hours).
        spread: float64 (r,), robust standard deviation of log(1 + hours).
        low_h: float64 (r,), 1 % quantile, hours.
        high_h: float64 (r,), 99 % quantile, hours.
    """

    key: Int64
    n: Int64
    center: npt.NDArray[np.float64]
    spread: npt.NDArray[np.float64]
    low_h: npt.NDArray[np.float64]
    high_h: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Network:
    """Counts and distributions of a part of the data.

    Attributes:
        site_ids: `location_id` of the k sites that had scans.
        edges: int64 (e, 3): from, to (positions in `site_ids`), times used.
        routes: step times by ((from, to), operations).
        classes: step times by (operations, distance class).
        markets: int64 (m, 3): product key, hub (position in `site_ids`), scans in its region.
    """

    site_ids: tuple[str, ...]
    edges: Int64
    routes: StepTimes
    classes: StepTimes
    markets: Int64

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers; `from_json` gives the same network back."""
        times = {
            name: {f.name: getattr(getattr(self, name), f.name).tolist() for f in fields(StepTimes)}
            for name in ("routes", "classes")
        }
        return {
            "site_ids": list(self.site_ids),
            "edges": self.edges.tolist(),
            "markets": self.markets.tolist(),
            **times,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Network:
        """The network that `to_json` wrote."""

        def times(of: Mapping[str, Sequence[float]]) -> StepTimes:
            types: dict[str, type] = {"key": np.int64, "n": np.int64}
            columns: dict[str, Any] = {
                f.name: np.array(of[f.name], dtype=types.get(f.name, np.float64))
                for f in fields(StepTimes)
            }
            return StepTimes(**columns)

        return cls(
            site_ids=tuple(value["site_ids"]),
            edges=np.array(value["edges"], dtype=np.int64).reshape(-1, 3),
            routes=times(value["routes"]),
            classes=times(value["classes"]),
            markets=np.array(value["markets"], dtype=np.int64).reshape(-1, 3),
        )


@dataclass(frozen=True, slots=True)
class Steps:
    """What the network says of each step; columns of length n, 0 where it says nothing.

    Attributes:
        known: bool, the network knows both sites well enough to judge the edge.
        edge_used: how often the edge was used.
        edge_share: share of the departures of the previous site that took this edge.
        region_used: departures of the previous site to any site in this one's region.
        expected_h: median time of such a step, hours.
        z: robust standard score of log(1 + hours).
        low_h: 1 % quantile, hours.
        high_h: 99 % quantile, hours.
        support: steps behind those figures.
        market_known: bool, the network knows where the product is sold.
        market_share: share of the product's scans that fall in this site's region.
    """

    known: npt.NDArray[np.bool_]
    edge_used: Int64
    edge_share: Float32
    region_used: Int64
    expected_h: Float32
    z: Float32
    low_h: Float32
    high_h: Float32
    support: Int64
    market_known: npt.NDArray[np.bool_]
    market_share: Float32


def fit(scans: Scans, previous: Index, sites: Sites) -> Network:
    """Count a network on scans in trail order.

    Args:
        scans: n honest scans in trail order.
        previous: intp (n,), position of each trail's previous scan, -1 at a first one.
        sites: the site master that `scans` refers to.
    """
    seen = np.unique(scans.site)
    place = np.full(len(sites), -1, dtype=np.int64)
    place[seen] = np.arange(len(seen))
    end = np.flatnonzero(previous >= 0)
    start = previous[end]
    a, b = place[scans.site[start]], place[scans.site[end]]
    moved = a != b
    k = len(seen)
    edge, used = np.unique(a[moved] * k + b[moved], return_counts=True)
    hours = (scans.time_us[end] - scans.time_us[start]) / 3.6e9
    ops = scans.op[start].astype(np.int64) * _OPS + scans.op[end]
    km = _km_class(sites.distance_km(scans.site[start], scans.site[end]))
    return Network(
        site_ids=tuple(sites.ids[i] for i in seen),
        edges=np.stack([edge // k, edge % k, used], axis=1).astype(np.int64),
        routes=_step_times((a * k + b) * _OPS**2 + ops, hours, MIN_ROUTE),
        classes=_step_times(ops * _KM_BINS + km, hours, MIN_ROUTE),
        markets=_markets(scans, sites, place),
    )


class BoundNetwork:
    """A network bound to a site master: look-ups by position, without strings."""

    def __init__(self, network: Network, sites: Sites) -> None:
        at = {site: i for i, site in enumerate(network.site_ids)}
        self._sites = sites
        self._place = np.array([at.get(site, -1) for site in sites.ids], dtype=np.int64)
        k = len(network.site_ids)
        self._k = k
        used = np.zeros((k, k), dtype=np.int64)
        used[network.edges[:, 0], network.edges[:, 1]] = network.edges[:, 2]
        self._used = used
        self._left = used.sum(axis=1)
        self._arrived = used.sum(axis=0)
        self._routes = network.routes
        self._classes = network.classes
        self._times = _stacked(network.routes, network.classes)
        region = sites.region
        has_hub = region >= 0
        self._hub = np.full(len(sites), -1, dtype=np.int64)
        self._hub[has_hub] = self._place[region[has_hub]]
        self._into_region = self._used_by_region()
        self._market_key = network.markets[:, 0] * (k + 1) + network.markets[:, 1]
        self._market_n = network.markets[:, 2]
        self._product, inverse = np.unique(network.markets[:, 0], return_inverse=True)
        self._product_n = np.zeros(len(self._product), dtype=np.int64)
        np.add.at(self._product_n, inverse, self._market_n)

    def _used_by_region(self) -> Int64:
        """Departures of each site to each region (the place of its hub), int64 (k, k)."""
        region = np.full(self._k, -1, dtype=np.int64)
        seen = self._place >= 0
        region[self._place[seen]] = self._hub[seen]
        into = np.zeros((self._k, self._k), dtype=np.int64)
        start, end = np.nonzero(self._used)
        inside = region[end] >= 0
        start, end = start[inside], end[inside]
        np.add.at(into, (start, region[end]), self._used[start, end])
        return into

    def steps(self, scans: Scans, previous: Index) -> Steps:
        """What the network says of the step that leads to each scan (n scans in trail order)."""
        n = len(scans)
        end = np.flatnonzero(previous >= 0)
        start = previous[end]
        a, b = self._place[scans.site[start]], self._place[scans.site[end]]
        both = (a >= 0) & (b >= 0)
        a0, b0 = np.where(both, a, 0), np.where(both, b, 0)
        used = np.where(both, self._used[a0, b0], 0) if self._k else np.zeros(len(end), np.int64)
        left = np.where(both, self._left[a0], 0) if self._k else np.zeros(len(end), np.int64)
        arrived = np.where(both, self._arrived[b0], 0) if self._k else left
        hub = self._hub[scans.site[end]]
        near = (a >= 0) & (hub >= 0)
        region_used = np.zeros(len(end), dtype=np.int64)
        region_used[near] = self._into_region[a[near], hub[near]]
        moved = scans.site[start] != scans.site[end]
        hours = (scans.time_us[end] - scans.time_us[start]) / 3.6e9
        ops = scans.op[start].astype(np.int64) * _OPS + scans.op[end]
        km = _km_class(self._sites.distance_km(scans.site[start], scans.site[end]))
        row = self._row((a0 * self._k + b0) * _OPS**2 + ops, both, ops * _KM_BINS + km)
        times = self._times
        log_h = np.log1p(hours)
        spread = np.maximum(times.spread[row], 0.02)
        found = row >= 0
        columns = {
            "known": both & moved & (left >= MIN_SITE) & (arrived >= MIN_SITE),
            "edge_used": used,
            "edge_share": (used / np.maximum(left, 1)).astype(np.float32),
            "region_used": region_used,
            "expected_h": np.where(found, np.expm1(times.center[row]), 0).astype(np.float32),
            "z": np.where(found, (log_h - times.center[row]) / spread, 0).astype(np.float32),
            "low_h": np.where(found, times.low_h[row], 0).astype(np.float32),
            "high_h": np.where(found, times.high_h[row], 0).astype(np.float32),
            "support": np.where(found, times.n[row], 0),
        }
        spread_out = {}
        for name, column in columns.items():
            whole = np.zeros(n, dtype=column.dtype)
            whole[end] = column
            spread_out[name] = whole
        market_known, market_share = self._market(scans)
        return Steps(market_known=market_known, market_share=market_share, **spread_out)

    def _row(self, route: Int64, both: npt.NDArray[np.bool_], by_class: Int64) -> Index:
        """Row of each step in the stacked times: its route where that is known, else its class."""
        row = np.where(both, _find(self._routes.key, route), -1)
        back_off = np.flatnonzero(row < 0)
        found = _find(self._classes.key, by_class[back_off])
        row[back_off] = np.where(found >= 0, found + len(self._routes.key), -1)
        return row

    def _market(self, scans: Scans) -> tuple[npt.NDArray[np.bool_], Float32]:
        codes = scans.codes
        product = _product_key(codes.company, codes.product)
        row = _find(self._product, product)
        total = np.where(row >= 0, self._product_n[row], 0) if len(self._product) else row * 0
        known_code = total >= MIN_PRODUCT
        hub = self._hub[scans.site]
        key = product[scans.epc] * (self._k + 1) + np.where(hub >= 0, hub, self._k)
        where = np.flatnonzero((hub >= 0) & known_code[scans.epc])
        found = _find(self._market_key, key[where])
        share = np.zeros(len(scans), dtype=np.float32)
        known = np.zeros(len(scans), dtype=bool)
        known[where] = True
        if len(where):
            n = np.where(found >= 0, self._market_n[found], 0)
            share[where] = n / np.maximum(total[scans.epc[where]], 1)
        return known, share


def _stacked(first: StepTimes, second: StepTimes) -> StepTimes:
    """Both tables, then a blank row, so that row -1 says nothing."""
    blank = {"key": -1, "n": 0, "center": 0.0, "spread": 1.0, "low_h": 0.0, "high_h": 0.0}
    columns = {}
    for name, nothing in blank.items():
        one, two = getattr(first, name), getattr(second, name)
        columns[name] = np.concatenate([one, two, np.array([nothing], dtype=one.dtype)])
    return StepTimes(**columns)


def _product_key(company: Int32, product: Int32) -> Int64:
    return company.astype(np.int64) * 10_000_000 + product


def _km_class(km: Float32) -> Int64:
    """Distance class; the last one stands for "coordinates unknown"."""
    return np.where(np.isfinite(km), np.digitize(km, _KM_EDGES), _KM_BINS - 1).astype(np.int64)


def _find(keys: Int64, wanted: Int64) -> Index:
    """Position of each wanted key in sorted keys, -1 where it is missing."""
    if not len(keys):
        return np.full(len(wanted), -1, dtype=np.intp)
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, place, -1)


def _step_times(key: Int64, hours: npt.NDArray[np.float64], at_least: int) -> StepTimes:
    order = np.lexsort((hours, key))
    key, hours = key[order], hours[order]
    heads = np.flatnonzero(np.append(True, key[1:] != key[:-1])) if len(key) else np.empty(0, int)
    n = np.diff(np.append(heads, len(key)))
    heads, n = heads[n >= at_least], n[n >= at_least]

    def quantile(q: float) -> npt.NDArray[np.float64]:
        return np.take(hours, heads + np.round(q * (n - 1)).astype(np.int64))

    center = np.log1p(quantile(0.5))
    spread = (np.log1p(quantile(0.84)) - np.log1p(quantile(0.16))) / 2
    return StepTimes(
        key=key[heads],
        n=n.astype(np.int64),
        center=center,
        spread=spread,
        low_h=quantile(_LOW),
        high_h=quantile(1 - _LOW),
    )


def _markets(scans: Scans, sites: Sites, place: Int64) -> Int64:
    """Scans of each product beyond the hubs, by region."""
    region = sites.region[scans.site]
    beyond = np.flatnonzero((scans.op >= 5) & (region >= 0))
    hub = place[region[beyond]]
    beyond, hub = beyond[hub >= 0], hub[hub >= 0]
    codes = scans.codes
    product = _product_key(codes.company, codes.product)[scans.epc[beyond]]
    k = int(place.max()) + 2
    key, n = np.unique(product * k + hub, return_counts=True)
    return np.stack([key // k, key % k, n], axis=1).astype(np.int64)
