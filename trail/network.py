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

from trail.scan import Float32, Int8, Int32, Int64, Scans
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
    edge_used: Int32
    edge_share: Float32
    region_used: Int32
    expected_h: Float32
    z: Float32
    low_h: Float32
    high_h: Float32
    support: Int32
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
    """A network bound to a site master: look-ups by position, without strings.

    Its tables have a last row (and column) for what the network does not know, so that a look-up
    needs no condition: the place of an unknown site is `k`, its hub is `h`.
    """

    def __init__(self, network: Network, sites: Sites) -> None:
        k = len(network.site_ids)
        at = {site: i for i, site in enumerate(network.site_ids)}
        self._sites = sites
        self._k = k
        self._place = np.array([at.get(site, k) for site in sites.ids], dtype=np.int64)
        used = np.zeros((k + 1, k + 1), dtype=np.int64)
        used[network.edges[:, 0], network.edges[:, 1]] = network.edges[:, 2]
        self._often_left = used.sum(axis=1) >= MIN_SITE
        self._often_reached = used.sum(axis=0) >= MIN_SITE
        self._bind_pairs(network, used)
        self._bind_times(network)
        self._bind_hubs(used)
        self._bind_markets(network)

    def _bind_pairs(self, network: Network, used: Int64) -> None:
        """Number the pairs of sites that the network has seen, and the routes between them."""
        left = used.sum(axis=1)
        route_start_end, ops = network.routes.key // _OPS**2, network.routes.key % _OPS**2
        start, end = route_start_end // self._k, route_start_end % self._k
        seen = used > 0
        seen[start, end] = True
        a, b = np.nonzero(seen)
        self._pair = np.full(seen.shape, len(a), dtype=np.int32)
        self._pair[a, b] = np.arange(len(a))
        self._used = np.append(used[a, b], 0).astype(np.int32)
        self._share = np.append(used[a, b] / np.maximum(left[a], 1), 0).astype(np.float32)
        self._route = np.full((len(a) + 1, _OPS**2), -1, dtype=np.int32)
        self._route[self._pair[start, end], ops] = np.arange(len(ops))

    def _bind_times(self, network: Network) -> None:
        """Step times of the routes, then of the classes, then a blank row, so that -1 is blank."""
        routes, classes = network.routes, network.classes
        self._class = np.full(_OPS**2 * _KM_BINS, -1, dtype=np.int32)
        self._class[classes.key] = len(routes.key) + np.arange(len(classes.key))

        def stacked(name: str, blank: float) -> npt.NDArray[Any]:
            one, two = getattr(routes, name), getattr(classes, name)
            return np.concatenate([one, two, np.array([blank], dtype=one.dtype)])

        self._center = stacked("center", 0)
        self._spread = np.maximum(stacked("spread", np.inf), 0.02)
        self._expected_h = np.expm1(self._center).astype(np.float32)
        self._low_h = stacked("low_h", 0).astype(np.float32)
        self._high_h = stacked("high_h", 0).astype(np.float32)
        self._support = stacked("n", 0).astype(np.int32)

    def _bind_hubs(self, used: Int64) -> None:
        """The hub of each site's region, by number, and what each place sends into each region."""
        region = self._sites.region
        hub_place = np.where(region >= 0, self._place[region], self._k)
        self._hubs = np.unique(hub_place[hub_place < self._k])
        h = len(self._hubs)
        self._hub = np.where(hub_place < self._k, np.searchsorted(self._hubs, hub_place), h)
        hub_of_place = np.full(self._k + 1, h)
        seen = self._place < self._k
        hub_of_place[self._place[seen]] = self._hub[seen]
        start, end = np.nonzero(used)
        self._into_region = np.zeros((self._k + 1, h + 1), dtype=np.int32)
        np.add.at(self._into_region, (start, hub_of_place[end]), used[start, end])
        self._into_region[:, h] = 0

    def _bind_markets(self, network: Network) -> None:
        """Share of each product's scans that fall in each hub's region, where that is known."""
        product, hub_place, n = network.markets.T
        self._products, row = np.unique(product, return_inverse=True)
        total = np.zeros(len(self._products) + 1, dtype=np.int64)
        np.add.at(total, row, n)
        h = len(self._hubs)
        hub = np.searchsorted(self._hubs, hub_place)
        here = np.flatnonzero(np.append(self._hubs, -1)[hub] == hub_place)
        share = np.zeros((len(total), h + 1), dtype=np.float32)
        share[row[here], hub[here]] = n[here] / np.maximum(total[row[here]], 1)
        self._market_known = np.repeat((total >= MIN_PRODUCT)[:, None], h + 1, axis=1)
        self._market_known[:, h] = False
        self._market_share = np.where(self._market_known, share, np.float32(0))

    def steps(self, scans: Scans, previous: Index) -> Steps:
        """What the network says of the step that leads to each scan (n scans in trail order)."""
        first = np.flatnonzero(previous < 0)
        before = previous.copy()
        before[first] = first
        place, hub = self._place[scans.site], self._hub[scans.site]
        start = place[before]
        start[first] = self._k
        pair = np.take(self._pair, start * (self._k + 1) + place)
        hours = (scans.time_us - scans.time_us[before]) / 3.6e9
        row = self._row(scans.site[before], scans.op[before], scans.site, scans.op, pair)
        row[first] = -1
        market = self._market(scans, hub)
        return Steps(
            known=self._often_left[start] & self._often_reached[place] & (start != place),
            edge_used=self._used[pair],
            edge_share=self._share[pair],
            region_used=np.take(self._into_region, start * (len(self._hubs) + 1) + hub),
            expected_h=self._expected_h[row],
            z=((np.log1p(hours) - self._center[row]) / self._spread[row]).astype(np.float32),
            low_h=self._low_h[row],
            high_h=self._high_h[row],
            support=self._support[row],
            market_known=np.take(self._market_known, market),
            market_share=np.take(self._market_share, market),
        )

    def usual_h(self, start: Int32, op_was: Int8, end: Int32, op: Int8) -> Float32:
        """Median time of some steps, float32 (m,), hours; 0 where it is not known.

        Args:
            start: int32 (m,), site of the scan before.
            op_was: int8 (m,), its operation.
            end: int32 (m,), site of the scan.
            op: int8 (m,), its operation.
        """
        pair = np.take(self._pair, self._place[start] * (self._k + 1) + self._place[end])
        usual: Float32 = self._expected_h[self._row(start, op_was, end, op, pair)]
        return usual

    def _row(self, start: Int32, op_was: Int8, end: Int32, op: Int8, pair: Int32) -> Index:
        """Row of each step's times: of its route where that is known, else of its class, or -1."""
        ops = op_was * np.int64(_OPS) + op
        row = np.take(self._route, pair * np.int64(_OPS**2) + ops).astype(np.intp)
        back_off = np.flatnonzero(row < 0)
        km = _km_class(self._sites.distance_km(start[back_off], end[back_off]))
        row[back_off] = self._class[ops[back_off] * _KM_BINS + km]
        return row

    def _market(self, scans: Scans, hub: Int64) -> Int64:
        """Cell of the table of markets that each scan falls in."""
        found = _find(self._products, _product_key(scans.codes.company, scans.codes.product))
        product = np.where(found >= 0, found, len(self._products))
        cell: Int64 = product[scans.epc] * (len(self._hubs) + 1) + hub
        return cell


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
