"""The network: sites, lawful edges, products and where they are sold."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trail.scan import Bool, Float64, Int32, Tier
from trail.sites import UNKNOWN_TIER, Sites
from world.layout import edges, ids, names, near, places, spread
from world.legs import joined, tiers_from_legs
from world.streams import stream

PRODUCTS: Final = 8
COMPANIES: Final = 3


@dataclass(frozen=True)
class Network:
    """A supply network; sites are positions in `sites` (k of them), regions are hub positions.

    Attributes:
        sites: the site master, tiers known where a site is used.
        start: int32 (e,), site where an edge begins.
        end: int32 (e,), site where it ends.
        weight: float64 (e,), share of the flow, relative among the edges of one start.
        least_h: float64 (e,), shortest hours of the leg, NaN where distance decides.
        most_h: float64 (e,), longest hours, likewise.
        side: bool (e,), a lawful edge between sites of one tier, for redistribution only.
        company: int32 (p,), company number of each product.
        product: int32 (p,), product number.
        markets: bool (p, k), product p may be sold in the region of hub k.
        makers: bool (p, k), factory k makes product p.
        warehouse: int32 (k,), the warehouse of a factory, -1 for other sites.
    """

    sites: Sites
    start: Int32
    end: Int32
    weight: Float64
    least_h: Float64
    most_h: Float64
    side: Bool
    company: Int32
    product: Int32
    markets: Bool
    makers: Bool
    warehouse: Int32

    @property
    def factories(self) -> npt.NDArray[np.intp]:
        """Positions of the factories that have a warehouse and make something."""
        return np.flatnonzero((self.warehouse >= 0) & self.makers.any(axis=0))

    @property
    def registry(self) -> pa.Table:
        """Genuine companies and products: epc_company, epc_product."""
        order = np.lexsort((self.product, self.company))
        return pa.table({"epc_company": self.company[order], "epc_product": self.product[order]})


def made_up(
    topology: int = 0, more_factories: int = 0, more_products: int = 0, catalogue: int = 0
) -> Network:
    """The product's own network: a country of 400 x 300 km that does not exist.

    Args:
        topology: seed of sites and edges; another one is another country.
        more_factories: factories beyond the usual four, at the end of their tier.
        more_products: products beyond the usual eight.
        catalogue: seed of company and product numbers.
    """
    rng = stream(topology, "network")
    lat, lon, tier = places(rng)
    extra = stream(topology, "new factory")
    spots = spread(extra, more_factories, 30.0)
    close = near(extra, spots, 2.0, 6.0)
    lat = np.concatenate([lat, spots[:, 0], close[:, 0]])
    lon = np.concatenate([lon, spots[:, 1], close[:, 1]])
    tier = np.concatenate(
        [tier, np.full(more_factories, Tier.FACTORY), np.full(more_factories, Tier.WMS)]
    ).astype(np.int8)
    numbers = [str(i) for i in ids(rng, len(tier))]
    sites = Sites.of(numbers, names(rng, tier), tier, lat, lon)
    start, end, weight, side = edges(sites, stream(topology, "edges"))
    nothing = np.full(len(start), np.nan)
    company, product = _catalogue(catalogue, PRODUCTS + more_products)
    return with_products(
        sites, start, end, weight, nothing, nothing.copy(), side, company, product, topology
    )


def from_files(
    sites: Sites, legs: pa.Table, registry: pa.Table | None = None, seed: int = 0
) -> Network:
    """A network over a user's sites and legs.

    Args:
        sites: the site master; tiers of -1 are learned from the legs.
        legs: one row a leg, the columns of `LEG_COLUMNS`; names as in the site master.
        registry: genuine epc_company and epc_product, made up where None.
        seed: of what the files do not say: products, makers, markets.

    Raises:
        ValueError: a column is missing, no leg joins two sites of the master, or the tiers
            cannot be told.
    """
    start, end, count, least, most = joined(sites, legs)
    tier = np.where(sites.tier == UNKNOWN_TIER, tiers_from_legs(sites, start, end), sites.tier)
    sites = replace(sites, tier=tier.astype(np.int8))
    down = tier[end] == tier[start] + 1
    keep = down & (tier[start] >= Tier.WMS)
    side = np.zeros(int(keep.sum()), dtype=bool)
    company, product = _goods(registry, seed)
    return with_products(
        sites,
        start[keep],
        end[keep],
        count[keep],
        least[keep],
        most[keep],
        side,
        company,
        product,
        seed,
    )


def with_products(
    sites: Sites,
    start: Int32,
    end: Int32,
    weight: Float64,
    least_h: Float64,
    most_h: Float64,
    side: Bool,
    company: Int32,
    product: Int32,
    seed: int,
) -> Network:
    """A network whose products are given to factories and to regions where they can arrive."""
    warehouse = _warehouses(sites)
    rng = stream(seed, "products")
    factories, hubs = np.flatnonzero(warehouse >= 0), np.flatnonzero(sites.tier == Tier.HUB)
    if not len(factories) or not len(hubs):
        raise ValueError(
            "the network has no factory with a warehouse, or no hub; give the sites a `tier` "
            "column (Factory, WMS, Logistics_HUB, W_Stock, R_Stock)"
        )
    makers = np.zeros((len(product), len(sites)), dtype=bool)
    markets = np.zeros((len(product), len(sites)), dtype=bool)
    for p in range(len(product)):
        makers[p, rng.permutation(factories)[: rng.integers(1, 3)]] = True
        makers[p, factories[p % len(factories)]] = True
        few = max(1, len(hubs) - int(rng.integers(1, 4))) if len(hubs) > 1 else 1
        markets[p, rng.permutation(hubs)[: max(few, min(2, len(hubs)))]] = True
    network = Network(
        sites,
        start,
        end,
        weight,
        least_h,
        most_h,
        side,
        company,
        product,
        markets,
        makers,
        warehouse,
    )
    for p in range(len(product)):
        for factory in np.flatnonzero(makers[p]):
            if not passable(network, p)[warehouse[factory]]:
                markets[p, hubs] = True
    return network


def passable(network: Network, p: int) -> Bool:
    """Sites from which product p can lawfully go on to a retailer of its markets, bool (k,).

    A wholesaler that ships nowhere counts: in a young installation goods wait there.
    """
    sites = network.sites
    region = sites.region
    sold = (region >= 0) & network.markets[p][region]
    ok = (sites.tier == Tier.RETAIL) & sold
    main = ~network.side
    ships = np.zeros(len(sites), dtype=bool)
    ships[network.start[main]] = True
    ok |= (sites.tier == Tier.WHOLESALE) & sold & ~ships
    for tier in (Tier.WHOLESALE, Tier.HUB, Tier.WMS):
        reach = np.zeros(len(sites), dtype=bool)
        reach[network.start[main & ok[network.end]]] = True
        inside = sold if tier == Tier.WHOLESALE else np.ones(len(sites), dtype=bool)
        ok |= (sites.tier == tier) & reach & inside
    return ok


def _warehouses(sites: Sites) -> Int32:
    """The nearest warehouse of each factory, int32 (k,), -1 for other sites."""
    warehouse = np.full(len(sites), -1, dtype=np.int32)
    places = np.flatnonzero(sites.tier == Tier.WMS).astype(np.int32)
    if len(places):
        for factory in np.flatnonzero(sites.tier == Tier.FACTORY):
            away = sites.distance_km(
                np.full(len(places), factory, np.int32), places.astype(np.int32)
            )
            warehouse[factory] = places[int(np.argmin(away))]
    return warehouse


def _catalogue(seed: int, count: int) -> tuple[Int32, Int32]:
    """Company and product numbers of seven digits, distinct."""
    rng = stream(seed, "catalogue")
    companies = _distinct(rng, 8_800_001, 8_899_999, COMPANIES)
    products = _distinct(rng, 1_000_000, 9_999_999, count)
    owner = companies[np.arange(count) % COMPANIES]
    return owner.astype(np.int32), products.astype(np.int32)


def _goods(registry: pa.Table | None, seed: int) -> tuple[Int32, Int32]:
    if registry is not None:
        return (
            np.asarray(registry["epc_company"]).astype(np.int32),
            np.asarray(registry["epc_product"]).astype(np.int32),
        )
    return _catalogue(seed, PRODUCTS)


def _distinct(rng: np.random.Generator, least: int, most: int, count: int) -> npt.NDArray[np.int64]:
    """Distinct numbers between least and most, in random order."""
    return rng.choice(most - least + 1, size=count, replace=False, shuffle=True) + least
