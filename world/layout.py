"""The made-up country: where its sites lie, what they are called, which edges join them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt

from trail.scan import Bool, Float64, Int32, Tier
from trail.sites import Sites, haversine_km

HUBS: Final = 5
FACTORIES: Final = 4
WHOLESALERS_PER_HUB: Final = 3
RETAILERS_PER_HUB: Final = 10
SOUTH_WEST: Final = (44.6, 15.2)
"""Corner of the made-up country, degrees."""
HEIGHT_KM: Final = 300.0
WIDTH_KM: Final = 400.0
KM_PER_DEGREE: Final = 111.195

_ONSETS: Final = [
    "b",
    "br",
    "d",
    "f",
    "g",
    "gr",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "z",
]
_VOWELS: Final = ["a", "e", "i", "o", "u", "ei", "au"]
_CODAS: Final = ["n", "r", "l", "s", "m", "nd", "rk", "lt"]
_ENDINGS: Final = ["au", "berg", "ford", "hal", "mor", "nik", "sand", "stad", "ven", "wick"]


def places(rng: np.random.Generator) -> tuple[Float64, Float64, npt.NDArray[np.int8]]:
    """Coordinates and tiers: factories, warehouses, hubs, wholesalers, retailers."""
    factories = spread(rng, FACTORIES, 90.0)
    warehouses = near(rng, factories, 2.0, 6.0)
    hubs = spread(rng, HUBS, 105.0)
    wholesalers = np.concatenate(
        [in_region(rng, hubs, hub, WHOLESALERS_PER_HUB, 12.0, 60.0) for hub in range(HUBS)]
    )
    retailers = np.concatenate(
        [in_region(rng, hubs, hub, RETAILERS_PER_HUB, 5.0, 85.0) for hub in range(HUBS)]
    )
    groups = (factories, warehouses, hubs, wholesalers, retailers)
    tier = np.concatenate([np.full(len(g), t, dtype=np.int8) for t, g in enumerate(groups)])
    spots = np.concatenate(groups)
    return spots[:, 0], spots[:, 1], tier


def spread(rng: np.random.Generator, count: int, apart_km: float) -> Float64:
    """Points of the country at least `apart_km` from one another, degrees (count, 2)."""
    chosen: list[Float64] = []
    while len(chosen) < count:
        point = _degrees(rng.uniform((25.0, 25.0), (HEIGHT_KM - 25.0, WIDTH_KM - 25.0)))
        if all(_km(point, other) >= apart_km for other in chosen):
            chosen.append(point)
        apart_km *= 0.999
    return np.array(chosen).reshape(count, 2)


def near(rng: np.random.Generator, spots: Float64, least_km: float, most_km: float) -> Float64:
    """One point near each spot, degrees."""
    angle = rng.uniform(0.0, 2 * np.pi, len(spots))
    away = rng.uniform(least_km, most_km, len(spots)) / KM_PER_DEGREE
    slope = np.cos(np.radians(spots[:, 0]))
    return spots + np.stack([away * np.sin(angle), away * np.cos(angle) / slope], axis=1)


def in_region(
    rng: np.random.Generator, hubs: Float64, hub: int, count: int, least_km: float, most_km: float
) -> Float64:
    """Points whose nearest hub is `hub`, degrees (count, 2)."""
    chosen: list[Float64] = []
    while len(chosen) < count:
        point = near(rng, hubs[hub : hub + 1], least_km, most_km)[0]
        if int(np.argmin([_km(point, other) for other in hubs])) == hub:
            chosen.append(point)
    return np.array(chosen)


def _degrees(km: Float64) -> Float64:
    latitude = SOUTH_WEST[0] + km[0] / KM_PER_DEGREE
    return np.array(
        [latitude, SOUTH_WEST[1] + km[1] / (KM_PER_DEGREE * np.cos(np.radians(latitude)))]
    )


def _km(a: Float64, b: Float64) -> float:
    return float(haversine_km(a[0], a[1], b[0], b[1]))


def ids(rng: np.random.Generator, count: int) -> npt.NDArray[np.int64]:
    """Ascending location ids with gaps, as installations have them."""
    return np.cumsum(rng.integers(1, 4, count))


def names(rng: np.random.Generator, tier: npt.NDArray[np.int8]) -> list[str]:
    """Distinct made-up names: a town and what stands there."""
    kinds = ("Plant", "Warehouse", "Hub", "Wholesale", "Store")
    used: set[str] = set()
    names = []
    for t in tier:
        while True:
            town = _town(rng)
            if town not in used:
                break
        used.add(town)
        names.append(f"{town} {kinds[t]}")
    return names


def _town(rng: np.random.Generator) -> str:
    pick = [int(rng.integers(len(x))) for x in (_ONSETS, _VOWELS, _CODAS, _ENDINGS)]
    syllable = _ONSETS[pick[0]] + _VOWELS[pick[1]] + _CODAS[pick[2]]
    return (syllable + _ENDINGS[pick[3]]).capitalize()


def edges(sites: Sites, rng: np.random.Generator) -> tuple[Int32, Int32, Float64, Bool]:
    """Main edges down the chain, and side edges between neighbours of one tier."""
    tier, region = sites.tier, sites.region
    rows: list[tuple[int, int, float, bool]] = []
    tiers = {t: np.flatnonzero(tier == t).tolist() for t in Tier if t <= Tier.RETAIL}
    for warehouse in tiers[Tier.WMS]:
        for hub, km in _nearest(sites, warehouse, tiers[Tier.HUB], 4):
            rows.append((warehouse, hub, float(np.exp(-km / 200) * rng.uniform(0.6, 1.4)), False))
    for hub in tiers[Tier.HUB]:
        for place, _ in _nearest(sites, hub, tiers[Tier.WHOLESALE], 6):
            share = 1.0 if region[place] == region[hub] else 0.12
            rows.append((hub, place, float(share * rng.uniform(0.6, 1.4)), False))
    for place in tiers[Tier.WHOLESALE]:
        for shop, _ in _nearest(sites, place, tiers[Tier.RETAIL], 9):
            share = 1.0 if region[shop] == region[place] else 0.25
            rows.append((place, shop, float(share * rng.uniform(0.6, 1.4)), False))
    for t, few in ((Tier.WHOLESALE, 1), (Tier.RETAIL, 2)):
        for a in tiers[t]:
            same = [b for b in tiers[t] if b != a and region[b] == region[a]]
            rows.extend((a, b, 1.0, True) for b, _ in _nearest(sites, a, same, few))
    start, end, weight, side = zip(*rows, strict=True)
    return (
        np.array(start, dtype=np.int32),
        np.array(end, dtype=np.int32),
        np.array(weight),
        np.array(side, dtype=bool),
    )


def _nearest(sites: Sites, site: int, among: Sequence[int], count: int) -> list[tuple[int, float]]:
    others = np.asarray(among, dtype=np.int32)
    km = sites.distance_km(np.full(len(others), site, np.int32), others)
    order = np.argsort(km, kind="stable")[:count]
    return [(int(others[i]), float(km[i])) for i in order]
