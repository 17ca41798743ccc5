"""The honest journey of one lot, from its commissioning to the sale of its items."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from trail.scan import Float64, Int8, Int32, Int64, Op
from world import calendar
from world.calendar import DAY_S, HOUR_S
from world.ground import Ground, together
from world.streams import stream

PALLETS_TOGETHER: Final = 0.5
"""A pallet joins the lorry of the pallet before it."""
BOXES_TOGETHER: Final = 0.35
"""A box goes to the retailer of the box before it, on one lorry."""
COMMISSION_GAP_S: Final = 0.3
"""Mean seconds between two items on the line."""
COMMISSION_JITTER_S: Final = 1.0
"""An item is read again by hand now and then, a second or so late."""
BOX_CHANGE_S: Final = (2.0, 6.0)
LOT_NUMBERS_OF_A_FACTORY: Final = 50_000


@dataclass(frozen=True, slots=True)
class Lot:
    """One lot: its items and their scans in physical time.

    Attributes:
        index: which lot of the world.
        product: position in the network's products.
        number: lot number in the EPC.
        made_s: start of commissioning, seconds since 1970.
        serial: int32 (n,), serial number of each item, ascending.
        item: int32 (m,), item of each scan.
        site: int32 (m,).
        op: int8 (m,).
        time_s: float64 (m,), seconds since 1970.
    """

    index: int
    product: int
    number: int
    made_s: float
    serial: Int32
    item: Int32
    site: Int32
    op: Int8
    time_s: Float64


@dataclass(slots=True)
class _Sheet:
    """Times and sites of the ten operations, one row an item; extra scans beside it."""

    time: Float64
    site: Int32
    extra: list[tuple[Int32, int, Int32, Float64]]


def travel(ground: Ground, index: int) -> Lot:
    """The lot number `index` of a world, the same whatever other lots there are."""
    rng = stream(ground.seed, "lot", index)
    network, profile = ground.network, ground.profile
    rank = int(rng.integers(len(network.factories)))
    factory = int(network.factories[rank])
    made_here = np.flatnonzero(network.makers[:, factory])
    product = int(made_here[rng.integers(len(made_here))])
    serial = _serials(ground, index, rng)
    n = len(serial)
    box = np.arange(n) // profile.box_items
    made_s = _made(ground, rng)
    sheet = _Sheet(np.full((n, 10), np.inf), np.zeros((n, 10), dtype=np.int32), [])
    sheet.time[:, Op.AGGREGATION] = _commission(made_s, box, rng)
    sheet.site[:, Op.AGGREGATION] = factory
    _to_wholesaler(ground, sheet, product, factory, box // profile.pallet_boxes, rng)
    _to_shelf(ground, sheet, product, box, rng)
    _sell(ground, sheet, rng)
    _redistribute(ground, sheet, product, stream(ground.seed, "redistribution", index))
    _return(ground, sheet, stream(ground.seed, "returns", index))
    seen = _seen(ground, sheet, box, stream(ground.seed, "missed", index))
    number = (rank * LOT_NUMBERS_OF_A_FACTORY + 10_000 + index + 1) % 1_000_000
    item, site, op, time = _flat(sheet, seen, ground.horizon_s)
    return Lot(index, product, number, made_s, serial, item, site, op, time)


def _serials(ground: Ground, index: int, rng: np.random.Generator) -> Int32:
    profile = ground.profile
    size = profile.lot_items_median * np.exp(profile.lot_items_sd_log * rng.standard_normal())
    size = float(np.clip(size, profile.lot_items_least, profile.lot_items_most))
    n = max(1, round(size / profile.box_items)) * profile.box_items
    used = 1 + (rng.random(n) < profile.unused_serial_share)
    block = int(profile.lot_items_most * 1.25)
    first = 2 + (index % (900_000_000 // block)) * block
    return (first + np.cumsum(used) - used[0]).astype(np.int32)


def _made(ground: Ground, rng: np.random.Generator) -> float:
    day = float(rng.integers(ground.days))
    hour = rng.uniform(8.0, 17.0)
    time_s = ground.start_s + day * DAY_S + hour * HOUR_S
    sunday = calendar.weekday(np.array([time_s]))[0] == calendar.SUNDAY
    if ground.profile.opening_hours and sunday:
        time_s += DAY_S if day + 1 < ground.days else -DAY_S
    return float(time_s)


def _commission(made_s: float, box: npt.NDArray[np.int64], rng: np.random.Generator) -> Float64:
    n = len(box)
    gap = rng.exponential(COMMISSION_GAP_S, n)
    gap += np.concatenate([[0], np.diff(box)]) * rng.uniform(*BOX_CHANGE_S, n)
    late = np.abs(rng.standard_normal(n)) * COMMISSION_JITTER_S * (rng.random(n) < 0.3)
    return made_s + np.cumsum(gap) + late


def _to_wholesaler(
    ground: Ground,
    sheet: _Sheet,
    product: int,
    factory: int,
    pallet_of: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    """Pallets to the warehouse one by one, then on lorries to a hub and to a wholesaler."""
    p = int(pallet_of[-1]) + 1
    last = np.searchsorted(pallet_of, np.arange(p), side="right") - 1
    packed = sheet.time[last, Op.AGGREGATION]
    home = np.full(p, factory, dtype=np.int32)
    site = np.full(p, ground.network.warehouse[factory], dtype=np.int32)
    came = ground.arrive(home, site, packed, Op.WMS_IN, rng)
    _write(sheet, Op.WMS_IN, pallet_of, site, came)
    lorry = together(p, PALLETS_TOGETHER, rng)
    first = np.searchsorted(lorry, np.arange(lorry[-1] + 1))
    ready = np.maximum.reduceat(came, first)
    for out, into in ((Op.WMS_OUT, Op.HUB_IN), (Op.HUB_OUT, Op.WHOLESALE_IN)):
        left = ground.leave(site[first], ready, out, rng)
        to = ground.next_site(product, site[first], left, rng)
        ready = np.where(to < 0, np.inf, ground.arrive(site[first], to, left, into, rng))
        left = np.where(to < 0, np.inf, left)
        _write(sheet, out, pallet_of, site, left[lorry])
        site = to[lorry]
        _write(sheet, into, pallet_of, site, ready[lorry])
        if out == Op.WMS_OUT:
            lorry, first, ready = _split(lorry, ready, rng)


def _split(
    lorry: npt.NDArray[np.int64], ready: Float64, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Float64]:
    """At the hub a lorry's pallets part, some of them."""
    apart = np.concatenate([[False], (np.diff(lorry) > 0) | (rng.random(len(lorry) - 1) < 0.5)])
    parts = np.cumsum(apart)
    first = np.searchsorted(parts, np.arange(parts[-1] + 1))
    return parts, first, ready[lorry[first]]


def _to_shelf(
    ground: Ground,
    sheet: _Sheet,
    product: int,
    box: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    """Boxes from the wholesaler to retailers; in an installation their items part."""
    b = int(box[-1]) + 1
    first_item = np.searchsorted(box, np.arange(b))
    site = sheet.site[first_item, Op.WHOLESALE_IN]
    came = sheet.time[first_item, Op.WHOLESALE_IN]
    lorry = together(b, BOXES_TOGETHER, rng)
    new = np.concatenate(
        [[True], (np.diff(lorry) > 0) | (np.diff(site) != 0) | (np.diff(came) != 0)]
    )
    lorry = np.cumsum(new) - 1
    first = np.flatnonzero(new)
    left = ground.leave(site[first], came[first], Op.WHOLESALE_OUT, rng)
    to = ground.next_site(product, site[first], left, rng)
    stays = (to < 0) | ~np.isfinite(came[first])
    left = np.where(stays, np.inf, left)
    ready = ground.arrive(site[first], np.maximum(to, 0), left, Op.RETAIL_IN, rng)
    shelf = ground.leave(np.maximum(to, 0), ready, Op.RETAIL_OUT, rng)
    _write(sheet, Op.WHOLESALE_OUT, box, site, left[lorry])
    shop = to[lorry]
    _write(sheet, Op.RETAIL_IN, box, shop, ready[lorry])
    _write(sheet, Op.RETAIL_OUT, box, shop, shelf[lorry])
    if ground.profile.items_part_at_wholesaler:
        shops = ground.next_site(product, site[box], left[lorry][box], rng)
        sheet.site[:, Op.RETAIL_IN] = shops
        sheet.site[:, Op.RETAIL_OUT] = shops


def _sell(ground: Ground, sheet: _Sheet, rng: np.random.Generator) -> None:
    shop = sheet.site[:, Op.RETAIL_OUT]
    sheet.site[:, Op.SALE] = shop
    sheet.time[:, Op.SALE] = ground.leave(shop, sheet.time[:, Op.RETAIL_OUT], Op.SALE, rng)


def _write(sheet: _Sheet, op: Op, group: npt.NDArray[np.int64], site: Int32, time: Float64) -> None:
    """Give each item the site and time of its group."""
    sheet.site[:, op] = site[group]
    sheet.time[:, op] = time[group]


def _redistribute(ground: Ground, sheet: _Sheet, product: int, rng: np.random.Generator) -> None:
    """A few items leave their site alone, with an outbound scan, for a neighbour of its tier."""
    n = len(sheet.time)
    heads = np.flatnonzero(rng.random(n) < ground.profile.redistributed_share / 2.0)
    size = rng.integers(1, 4, len(heads))
    head_of = np.repeat(np.arange(len(heads)), size)
    item = (heads[head_of] + np.arange(len(head_of)) - (np.cumsum(size) - size)[head_of]).astype(
        np.int32
    )
    inside = item < n
    item, head_of = item[inside], head_of[inside]
    same = sheet.time[item, Op.RETAIL_IN] == sheet.time[heads[head_of], Op.RETAIL_IN]
    same &= np.isfinite(sheet.time[item, Op.RETAIL_IN])
    same &= sheet.site[item, Op.RETAIL_IN] == sheet.site[heads[head_of], Op.RETAIL_IN]
    keep = np.flatnonzero(same)
    keep = keep[np.unique(item[keep], return_index=True)[1]]
    item, head_of = item[keep], head_of[keep]
    kind = rng.integers(0, 3, len(heads))
    draws = [rng.spawn(1)[0] for _ in range(3)]
    for way, move in enumerate((_to_sister_shop, _to_sister_wholesaler, _by_another_road)):
        mine = kind[head_of] == way
        if mine.any():
            some, group = np.unique(head_of[mine], return_inverse=True)
            move(ground, sheet, product, item[mine], group, heads[some], draws[way])


def _sister(ground: Ground, site: Int32, rng: np.random.Generator) -> Int32:
    """A neighbour by a side edge, or -1."""
    network = ground.network
    chosen = np.full(len(site), -1, dtype=np.int32)
    for i, s in enumerate(site):
        ends = network.end[(network.start == s) & network.side]
        if len(ends):
            chosen[i] = ends[int(rng.integers(len(ends)))]
    return chosen


def _to_sister_shop(
    ground: Ground,
    sheet: _Sheet,
    product: int,
    item: Int32,
    group: npt.NDArray[np.int64],
    head: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    shop = sheet.site[head, Op.RETAIL_IN]
    to = _sister(ground, shop, rng)
    left = ground.leave(shop, sheet.time[head, Op.RETAIL_IN], Op.RETAIL_OUT, rng)
    came = ground.arrive(shop, np.maximum(to, 0), left, Op.RETAIL_IN, rng)
    shelf = ground.leave(np.maximum(to, 0), came, Op.RETAIL_OUT, rng)
    mine = to[group] >= 0
    item, group = item[mine], group[mine]
    sheet.extra.append((item, Op.RETAIL_OUT, shop[group], left[group]))
    sheet.extra.append((item, Op.RETAIL_IN, to[group], came[group]))
    _resell(ground, sheet, item, to[group], shelf[group], rng)


def _to_sister_wholesaler(
    ground: Ground,
    sheet: _Sheet,
    product: int,
    item: Int32,
    group: npt.NDArray[np.int64],
    head: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    place = sheet.site[head, Op.WHOLESALE_IN]
    to = _sister(ground, place, rng)
    left = ground.leave(place, sheet.time[head, Op.WHOLESALE_IN], Op.WHOLESALE_OUT, rng)
    came = ground.arrive(place, np.maximum(to, 0), left, Op.WHOLESALE_IN, rng)
    out = ground.leave(np.maximum(to, 0), came, Op.WHOLESALE_OUT, rng)
    shop = ground.next_site(product, to, out, rng)
    mine = (to >= 0) & (shop >= 0)
    mine = mine[group]
    item, group = item[mine], group[mine]
    sheet.extra.append((item, Op.WHOLESALE_OUT, place[group], left[group]))
    sheet.extra.append((item, Op.WHOLESALE_IN, to[group], came[group]))
    sheet.site[item, Op.WHOLESALE_OUT] = to[group]
    sheet.time[item, Op.WHOLESALE_OUT] = out[group]
    ready = ground.arrive(np.maximum(to, 0), np.maximum(shop, 0), out, Op.RETAIL_IN, rng)
    shelf = ground.leave(np.maximum(shop, 0), ready, Op.RETAIL_OUT, rng)
    sheet.site[item, Op.RETAIL_IN] = shop[group]
    sheet.time[item, Op.RETAIL_IN] = ready[group]
    _resell(ground, sheet, item, shop[group], shelf[group], rng)


def _by_another_road(
    ground: Ground,
    sheet: _Sheet,
    product: int,
    item: Int32,
    group: npt.NDArray[np.int64],
    head: npt.NDArray[np.int64],
    rng: np.random.Generator,
) -> None:
    place = sheet.site[head, Op.WHOLESALE_IN]
    out = ground.leave(place, sheet.time[head, Op.WHOLESALE_IN], Op.WHOLESALE_OUT, rng)
    shop = ground.next_site(product, place, out, rng)
    ready = ground.arrive(place, np.maximum(shop, 0), out, Op.RETAIL_IN, rng)
    shelf = ground.leave(np.maximum(shop, 0), ready, Op.RETAIL_OUT, rng)
    mine = shop[group] >= 0
    item, group = item[mine], group[mine]
    sheet.time[item, Op.WHOLESALE_OUT] = out[group]
    sheet.site[item, Op.RETAIL_IN] = shop[group]
    sheet.time[item, Op.RETAIL_IN] = ready[group]
    _resell(ground, sheet, item, shop[group], shelf[group], rng)


def _resell(
    ground: Ground,
    sheet: _Sheet,
    item: Int32,
    shop: Int32,
    shelf: Float64,
    rng: np.random.Generator,
) -> None:
    """Items go on a shelf of `shop` at `shelf` and are sold there."""
    sheet.site[item, Op.RETAIL_OUT] = shop
    sheet.time[item, Op.RETAIL_OUT] = shelf
    sheet.site[item, Op.SALE] = shop
    sheet.time[item, Op.SALE] = ground.leave(shop, shelf, Op.SALE, rng)


def _return(ground: Ground, sheet: _Sheet, rng: np.random.Generator) -> None:
    """Customers bring items back to the shop; half of them are sold again."""
    n = len(sheet.time)
    back = np.flatnonzero(rng.random(n) < ground.profile.returned_share).astype(np.int32)
    shop = sheet.site[back, Op.SALE]
    sold = sheet.time[back, Op.SALE]
    came = ground.leave(shop, sold + rng.uniform(1.0, 14.0, len(back)) * DAY_S, Op.RETAIL_IN, rng)
    sheet.extra.append((back, Op.RETAIL_IN, shop, came))
    again = rng.random(len(back)) < 0.5
    back, shop, came = back[again], shop[again], came[again]
    shelf = ground.leave(shop, came, Op.RETAIL_OUT, rng)
    sheet.extra.append((back, Op.RETAIL_OUT, shop, shelf))
    sheet.extra.append((back, Op.SALE, shop, ground.leave(shop, shelf, Op.SALE, rng)))


def _seen(
    ground: Ground, sheet: _Sheet, box: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Which scans were read, bool (n, 10).

    The commissioning record is lost only where a whole lot lacks its first scans.
    """
    profile, n = ground.profile, len(box)
    missed = rng.random((n, 10)) < profile.missed_item_share
    pallet = box // profile.pallet_boxes
    of_pallet = rng.random((pallet[-1] + 1, Op.WHOLESALE_IN)) < profile.missed_box_share
    of_box = rng.random((box[-1] + 1, 3)) < profile.missed_box_share
    missed[:, Op.WMS_IN : Op.WHOLESALE_OUT] |= of_pallet[pallet]
    missed[:, Op.WHOLESALE_OUT : Op.SALE] |= of_box[box]
    missed[:, Op.AGGREGATION] = False
    lacks = rng.random() < profile.missed_lot_share
    first = int(rng.integers(1, 5))
    if lacks:
        missed[:, :first] = True
    return ~missed


def _flat(
    sheet: _Sheet, seen: npt.NDArray[np.bool_], horizon_s: float
) -> tuple[Int32, Int32, Int8, Float64]:
    """The sheet as scans before the horizon: item, site, op, time."""
    read = seen & (sheet.time < horizon_s)
    item, op = np.nonzero(read)
    parts: list[tuple[Int64, Int32, Int64, Float64]] = [
        (item, sheet.site[read], op, sheet.time[read])
    ]
    for who, what, where, when in sheet.extra:
        parts.append((who.astype(np.int64), where, np.full(len(who), int(what)), when))
    item, site, op, time = (np.concatenate(column) for column in zip(*parts, strict=True))
    keep = time < horizon_s
    return (
        item[keep].astype(np.int32),
        site[keep].astype(np.int32),
        op[keep].astype(np.int8),
        time[keep],
    )
