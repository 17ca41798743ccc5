"""Master data: the site master, the registry of genuine products, and leg statistics."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Final

import pyarrow as pa

from intake.errors import IntakeError
from intake.small import Row, read_rows
from intake.text import canonical_id
from trail.registry import Registry
from trail.scan import TIER_NAMES, Tier
from trail.sites import UNKNOWN_TIER, Sites

_SITE_COLUMNS: Final = {
    "location_id": (),
    "scan_location": (),
    "latitude": ("lat",),
    "longitude": ("lon", "lng", "long"),
    "tier": (),
    "known": (),
}
_LEG_NUMBERS: Final = ("mean", "std", "min", "max")
_LEG_COLUMNS: Final = (
    "from_scan_location",
    "to_scan_location",
    *(f"time_taken_hours_{name}" for name in ("mean", "std", "min", "max", "count")),
)
_TIERS: Final = {name.lower(): i for i, name in enumerate(TIER_NAMES)}


def read_sites(path: str | Path) -> Sites:
    """Read a site master.

    Columns, in any case and order: `location_id`; optional `scan_location`, `latitude` and
    `longitude` in degrees (or `lat`, `lon`), `tier` (a name such as Logistics_HUB, or 0-5; a
    site of sales is a retailer), and `known` (false for a site that only scans name).

    Raises:
        IntakeError: a column is missing, or a value is wrong; names row and value.
    """
    rows = read_rows(path, _SITE_COLUMNS, ("location_id",))
    if not rows:
        raise IntakeError(f"{Path(path).name}: a header and no sites; add a row for each site")
    ids: dict[str, int] = {}
    for row in rows:
        site = canonical_id(row.values["location_id"])
        if not site:
            raise row.wrong("location_id", "is empty; give each site its own")
        if site in ids:
            raise row.wrong("location_id", f"stands in row {ids[site]} already; keep one row")
        ids[site] = row.number
    places = [_coordinates(row) for row in rows]
    return Sites.of(
        list(ids),
        [row.values.get("scan_location", "") for row in rows],
        [_tier(row) for row in rows],
        [latitude for latitude, _ in places],
        [longitude for _, longitude in places],
        [_known(row) for row in rows],
    )


def write_sites(sites: Sites, path: str | Path) -> None:
    """Write sites, unknown ones too, so that `read_sites` gives the same ones back."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(_SITE_COLUMNS)
        for i, site in enumerate(sites.ids):
            tier = int(sites.tier[i])
            out.writerow(
                (
                    site,
                    sites.names[i],
                    _degrees(float(sites.latitude[i])),
                    _degrees(float(sites.longitude[i])),
                    TIER_NAMES[tier] if tier >= 0 else "",
                    "true" if sites.known[i] else "false",
                )
            )


def read_registry(path: str | Path) -> Registry:
    """Read the genuine companies and products: columns `epc_company`, `epc_product`.

    Raises:
        IntakeError: a column is missing, or a value is no number of up to seven digits.
    """
    names = ("epc_company", "epc_product")
    rows = read_rows(path, dict.fromkeys(names, ()), names)
    if not rows:
        raise IntakeError(
            f"{Path(path).name}: a header and no products; leave the file out instead"
        )
    company, product = ([_digits(row, name) for row in rows] for name in names)
    return Registry.of(company, product)


def write_registry(registry: Registry, path: str | Path) -> None:
    """Write a registry, so that `read_registry` gives the same one back."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file, lineterminator="\n")
        out.writerow(("epc_company", "epc_product"))
        for pair in registry.pair.tolist():
            out.writerow((f"{pair // 10_000_000:07d}", f"{pair % 10_000_000:07d}"))


def read_legs(path: str | Path) -> pa.Table:
    """Read leg statistics by names of sites.

    Returns:
        A table of `from_scan_location`, `to_scan_location` (text), `time_taken_hours_mean`,
        `_std`, `_min`, `_max` (float64, hours) and `_count` (int64), in the file's order.

    Raises:
        IntakeError: a column is missing; a value is wrong; a leg stands twice.
    """
    rows = read_rows(path, dict.fromkeys(_LEG_COLUMNS, ()), _LEG_COLUMNS)
    if not rows:
        raise IntakeError(f"{Path(path).name}: a header and no legs; add a row for each leg")
    seen: dict[tuple[str, str], int] = {}
    columns: dict[str, list[str] | list[float]] = {name: [] for name in _LEG_COLUMNS}
    for row in rows:
        for name, value in zip(_LEG_COLUMNS, _leg(row), strict=True):
            columns[name].append(value)  # type: ignore[arg-type]
        leg = (row.values["from_scan_location"], row.values["to_scan_location"])
        if leg in seen:
            raise row.wrong(
                "from_scan_location", f"to {leg[1]!r} stands in row {seen[leg]} already; keep one"
            )
        seen[leg] = row.number
    types = [pa.string()] * 2 + [pa.float64()] * 4 + [pa.int64()]
    return pa.table(columns, schema=pa.schema(list(zip(_LEG_COLUMNS, types, strict=True))))


def _leg(row: Row) -> tuple[str, str, float, float, float, float, int]:
    ends = [row.values[name] for name in _LEG_COLUMNS[:2]]
    for name, value in zip(_LEG_COLUMNS[:2], ends, strict=True):
        if not value:
            raise row.wrong(name, "is empty; name the site as in the site master")
    hours = {}
    for short in _LEG_NUMBERS:
        name = f"time_taken_hours_{short}"
        hours[short] = row.number_in(name, 0, 24 * 366)
        if math.isnan(hours[short]):
            if short != "std":  # one journey has no deviation
                raise row.wrong(name, "is empty; give hours")
            hours[short] = 0.0
    if not hours["min"] - 1e-9 <= hours["mean"] <= hours["max"] + 1e-9:
        raise row.wrong("time_taken_hours_mean", "does not lie between min and max; correct them")
    count = row.number_in("time_taken_hours_count", 1, 2**53)
    if not count.is_integer():
        raise row.wrong("time_taken_hours_count", "is not a whole number; correct it")
    return ends[0], ends[1], hours["mean"], hours["std"], hours["min"], hours["max"], int(count)


def _coordinates(row: Row) -> tuple[float, float]:
    latitude = row.number_in("latitude", -90, 90)
    longitude = row.number_in("longitude", -180, 180)
    if math.isnan(latitude) != math.isnan(longitude):
        name = "latitude" if math.isnan(latitude) else "longitude"
        raise row.wrong(name, "is empty while the other coordinate is given; give both or none")
    return latitude, longitude


def _tier(row: Row) -> int:
    text = row.values.get("tier", "")
    if text.lower() in ("", "nan", "null", "none", str(UNKNOWN_TIER)):
        return UNKNOWN_TIER
    number = canonical_id(text)
    tier = int(number) if number.isdecimal() else _TIERS.get(text.lower(), -1)
    if not 0 <= tier <= Tier.SALE:
        raise row.wrong("tier", f"is no tier; use {', '.join(TIER_NAMES)}, 0-5, or nothing")
    return min(tier, int(Tier.RETAIL))


def _known(row: Row) -> bool:
    text = row.values.get("known", "").lower()
    if text not in ("", "true", "false", "1", "0"):
        raise row.wrong("known", "is neither true nor false; correct it or leave the column out")
    return text not in ("false", "0")


def _digits(row: Row, name: str) -> int:
    text = canonical_id(row.values[name])
    if not (text.isascii() and text.isdecimal() and len(text) <= 7):
        raise row.wrong(name, "is not a number of up to seven digits; correct it")
    return int(text)


def _degrees(value: float) -> str:
    return "" if math.isnan(value) else repr(value)
