"""Tiers and edges learned from an installation's leg statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from trail.scan import TIER_NAMES, Int8, Int32, Tier
from trail.sites import UNKNOWN_TIER, Sites

LEG_COLUMNS: Final = (
    "from_scan_location",
    "to_scan_location",
    "time_taken_hours_min",
    "time_taken_hours_max",
    "time_taken_hours_count",
)
FACTORY_NEAR_KM: Final = 5.0
"""A site without legs this near a warehouse is its factory."""


def tiers_from_legs(sites: Sites, start: Int32, end: Int32) -> Int8:
    """Tiers learned from the graph of legs, int8 (k,), -1 for a site that no leg explains.

    Sinks are retailers, their predecessors wholesalers, then hubs, then warehouses. A sink that
    only hubs supply is a wholesaler that has not shipped yet. A site without legs near a
    warehouse is its factory.
    """
    height = _heights(len(sites), start, end)
    tier = np.where(height >= 0, Tier.RETAIL - height, UNKNOWN_TIER)
    tier = np.where((height > Tier.RETAIL), UNKNOWN_TIER, tier)
    for sink in np.flatnonzero(height == 0):
        above = tier[start[end == sink]]
        if len(above) and above.max() < Tier.WHOLESALE:
            tier[sink] = above.max() + 1
    warehouses = np.flatnonzero(tier == Tier.WMS).astype(np.int32)
    for site in np.flatnonzero(height < 0):
        away = sites.distance_km(np.full(len(warehouses), site, np.int32), warehouses)
        if len(away) and np.nanmin(away) <= FACTORY_NEAR_KM:
            tier[site] = Tier.FACTORY
    return tier.astype(np.int8)


def _heights(k: int, start: Int32, end: Int32) -> npt.NDArray[np.int64]:
    """Longest way down to a sink, in legs; -1 for a site without legs."""
    height = np.full(k, -1, dtype=np.int64)
    height[start] = 0
    height[end] = 0
    for _ in range(k):
        below = height.copy()
        np.maximum.at(below, start, height[end] + 1)
        if (below == height).all():
            return height
        height = below
    raise ValueError(
        "the legs run in a circle, so the tiers cannot be told; give the sites a `tier` column"
    )


def joined(
    sites: Sites, legs: pa.Table
) -> tuple[Int32, Int32, npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Legs whose ends are both in the master: start, end, count, least and most hours.

    Raises:
        ValueError: a column is missing, or no leg joins two sites of the master.
    """
    missing = [name for name in LEG_COLUMNS if name not in legs.column_names]
    if missing:
        raise ValueError(
            f"the leg statistics lack the column {missing[0]!r}; they need {', '.join(LEG_COLUMNS)}"
        )
    place: Mapping[str, int] = {name: i for i, name in enumerate(sites.names)}
    rows = []
    for row in legs.select(LEG_COLUMNS).to_pylist():
        a, b = place.get(row[LEG_COLUMNS[0]]), place.get(row[LEG_COLUMNS[1]])
        if a is not None and b is not None and a != b:
            rows.append((a, b, row[LEG_COLUMNS[4]], row[LEG_COLUMNS[2]], row[LEG_COLUMNS[3]]))
    if not rows:
        raise ValueError(
            "no leg joins two sites of the site master; from_scan_location and to_scan_location "
            "must be names that stand in its scan_location column"
        )
    start, end, count, least, most = (
        np.array(column, dtype=np.float64) for column in zip(*rows, strict=True)
    )
    return start.astype(np.int32), end.astype(np.int32), count, least, most


def tier_of_name(name: str) -> int:
    """Tier of a name of a `tier` column, in any case, or of its number.

    Raises:
        ValueError: the name is no tier.
    """
    text = name.strip()
    if not text:
        return UNKNOWN_TIER
    names = {t.casefold(): i for i, t in enumerate(TIER_NAMES[: Tier.RETAIL + 1])}
    if text.casefold() in names:
        return names[text.casefold()]
    if text.isdigit() and int(text) <= Tier.RETAIL:
        return int(text)
    raise ValueError(f"tier {name!r} is none of {', '.join(TIER_NAMES[: Tier.RETAIL + 1])}")
