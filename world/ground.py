"""The ground that every lot moves on: network, profile, site factors, routes, legs, dwells."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from trail.scan import SITE_TIER_OF_OP, Float64, Int32, Op
from world import calendar
from world.calendar import DAY_S, HOUR_S
from world.network import Network, passable
from world.profile import DELAY_DF, DELAY_FROM, DELAY_MOST, DELAY_SCALE, DWELL_SHAPE, Profile
from world.streams import stream

SITE_FACTOR_SD_LOG = 0.35
"""Spread of a site's own dwell factor, lognormal."""
TRANSFER_H = (0.4, 0.8)
"""Hours from the line to the factory's own warehouse, in an installation with uniform legs."""
DWELL_OF_OP = {
    Op.RETAIL_IN: 3,
    Op.WMS_OUT: 0,
    Op.HUB_OUT: 1,
    Op.WHOLESALE_OUT: 2,
    Op.RETAIL_OUT: 3,
    Op.SALE: 4,
}


@dataclass(frozen=True)
class Routes:
    """Where one product may go next from each site.

    Attributes:
        target: int32 (k, m), the sites, -1 where there is none.
        cumulative: float64 (k, m), cumulative shares of the flow; 2 beyond the last.
    """

    target: Int32
    cumulative: Float64

    def draw(self, site: Int32, rng: np.random.Generator) -> Int32:
        """The next site of each, int32; -1 where goods stay, and from -1."""
        u = rng.random(len(site))
        choice = (u[:, None] > self.cumulative[site]).sum(axis=1)
        return np.where(site < 0, -1, self.target[site, choice]).astype(np.int32)


@dataclass(frozen=True)
class Ground:
    """What all lots share.

    Attributes:
        network: sites, edges, products.
        profile: parameters.
        dwell_days: means by place, see `profile.DWELL_DAYS`.
        seed: of the world.
        start_s: first day of commissioning, seconds since 1970.
        days: days of commissioning.
        horizon_s: no scan is later.
        change_s: from then dwells are 1.5 times as long and a site is closed; inf is never.
        closed: position of the site that closes, -1 for none.
        site_factor: float64 (k,), factor of a site's dwells.
    """

    network: Network
    profile: Profile
    dwell_days: tuple[float, ...]
    seed: int
    start_s: float
    days: int
    horizon_s: float
    change_s: float = np.inf
    closed: int = -1
    site_factor: Float64 = field(default_factory=lambda: np.ones(0))
    _leg_h: tuple[Float64, Float64] | None = field(default=None, repr=False)
    _routes: dict[tuple[int, bool], Routes] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        network: Network,
        profile: Profile,
        dwell_days: tuple[float, ...],
        seed: int,
        start_s: float,
        days: int,
        horizon_s: float,
        change_s: float = np.inf,
        closed: int = -1,
    ) -> Ground:
        """The ground with what follows from its parameters."""
        k = len(network.sites)
        factor = stream(seed, "site").lognormal(0.0, SITE_FACTOR_SD_LOG, k)
        least, most = np.full((k, k), np.nan), np.full((k, k), np.nan)
        least[network.start, network.end] = network.least_h
        most[network.start, network.end] = network.most_h
        legs = (least, most) if np.isfinite(network.least_h).any() else None
        return cls(
            network,
            profile,
            dwell_days,
            seed,
            start_s,
            days,
            horizon_s,
            change_s,
            closed,
            factor,
            legs,
        )

    def routes(self, product: int, late: bool = False) -> Routes:
        """Routes of a product, before or after the change of the world."""
        key = (product, late and self.closed >= 0)
        if key not in self._routes:
            self._routes[key] = _routes(self.network, product, self.closed if key[1] else -1)
        return self._routes[key]

    def next_site(
        self, product: int, site: Int32, time_s: Float64, rng: np.random.Generator
    ) -> Int32:
        """Where goods of a product go from `site` when they leave at `time_s`."""
        state = rng.bit_generator.state
        chosen = self.routes(product).draw(site, rng)
        late = time_s >= self.change_s
        if late.any() and self.closed >= 0:
            rng.bit_generator.state = state
            chosen = np.where(late, self.routes(product, True).draw(site, rng), chosen)
        return chosen

    def leg_s(self, start: Int32, end: Int32, rng: np.random.Generator) -> Float64:
        """Seconds on the road from start to end, drawn for each pair."""
        n, profile = len(start), self.profile
        hours = self._road_h(start, end, rng)
        uniform = rng.random(n)
        if profile.leg_uniform_h is not None:
            least, most = profile.leg_uniform_h
            inside = self.network.warehouse[start] >= 0
            hours = np.where(
                inside,
                TRANSFER_H[0] + uniform * (TRANSFER_H[1] - TRANSFER_H[0]),
                least + uniform * (most - least),
            )
        if self._leg_h is not None:
            own_least, own_most = self._leg_h[0][start, end], self._leg_h[1][start, end]
            hours = np.where(
                np.isfinite(own_least), own_least + uniform * (own_most - own_least), hours
            )
        expedited = rng.random(n) < profile.expedited_share
        return hours * np.where(expedited, rng.uniform(0.5, 0.8, n), 1.0) * HOUR_S

    def _road_h(self, start: Int32, end: Int32, rng: np.random.Generator) -> Float64:
        n = len(start)
        km = self.network.sites.distance_km(start, end).astype(np.float64)
        speed_kmh = np.clip(62.0 * np.exp(0.12 * rng.standard_normal(n)), 40.0, 85.0)
        hours = 1.25 * km / speed_kmh + 0.5 + rng.gamma(2.0, 0.6, n)
        beyond = np.maximum(rng.standard_t(DELAY_DF, n) - DELAY_FROM, 0.0)
        return hours * np.minimum(np.exp(DELAY_SCALE * beyond), DELAY_MOST)

    def leave(self, site: Int32, after_s: Float64, op: Op, rng: np.random.Generator) -> Float64:
        """When goods that came to `site` at `after_s` do `op`, their dwell over."""
        place = DWELL_OF_OP[op]
        mean_s = self.dwell_days[place] * DAY_S * self.site_factor[site]
        mean_s = mean_s * np.where(after_s >= self.change_s, 1.5, 1.0)
        shape = 1.0 if op == Op.SALE else DWELL_SHAPE
        dwell_s = rng.gamma(shape, 1.0 / shape, len(site)) * mean_s
        if self.profile.opening_hours:
            return calendar.depart(after_s, dwell_s, op, rng)
        return after_s + np.maximum(dwell_s, 1800.0)

    def arrive(
        self, start: Int32, end: Int32, left_s: Float64, op: Op, rng: np.random.Generator
    ) -> Float64:
        """When goods that left `start` at `left_s` are read at `end`."""
        time_s = left_s + self.leg_s(start, end, rng)
        return calendar.arrive(time_s, op, rng) if self.profile.opening_hours else time_s


def _routes(network: Network, product: int, closed: int) -> Routes:
    ok = passable(network, product)
    use = ok[network.end] & ~network.side & (network.end != closed)
    use &= network.sites.tier[network.start] < SITE_TIER_OF_OP[Op.SALE]
    k = len(network.sites)
    most = max(int(np.bincount(network.start[use], minlength=k).max()), 1) if use.any() else 1
    target = np.full((k, most + 1), -1, dtype=np.int32)
    cumulative = np.full((k, most + 1), 2.0)
    for site in np.unique(network.start[use]):
        edge = np.flatnonzero(use & (network.start == site))
        share = np.cumsum(network.weight[edge])
        target[site, : len(edge)] = network.end[edge]
        cumulative[site, : len(edge)] = share / share[-1]
        cumulative[site, len(edge) - 1] = 2.0
    return Routes(target, cumulative)


def together(count: int, share: float, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Group numbers of a row of things, each joining the one before it with `share`."""
    return np.cumsum(np.concatenate([[False], rng.random(max(count - 1, 0)) >= share]))[:count]
