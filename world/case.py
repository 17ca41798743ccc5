"""One case of tampering: what it may look at, and the plan of what it changes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt

from trail.scan import HOUR_US, OP_DIRECTION, Anomaly, Bool, Int8, Int32, Int64, Op, Tier
from world.estimate import WEEK_H, Estimate, hour_of_week

T = TypeVar("T")
Key = tuple[int, int, int]
"""A scan within its trail: (time in microseconds, site, operation)."""

FAKE, DUP, LOC, ORDER, JUMP = (1 << int(a) for a in Anomaly)
"""Bits of the anomalies in a blur mask."""
ALL: Final = FAKE | DUP | LOC | ORDER | JUMP

INTO_TIER: Final = {Tier.WMS: Op.WMS_IN, Tier.HUB: Op.HUB_IN, Tier.WHOLESALE: Op.WHOLESALE_IN}
MINUTE_US: Final = HOUR_US // 60
DAY_US: Final = 24 * HOUR_US
SECOND_US: Final = HOUR_US // 3600
TWICE_US: Final = 10 * MINUTE_US
"""A scan that follows the same one within this time is its second reading."""


@dataclass
class LotView:
    """The scans of one lot, sorted by (EPC, time).

    Attributes:
        key: lot key.
        epc: int32 (n,).
        site: int32 (n,).
        op: int8 (n,).
        time_us: int64 (n,).
        first: int64 (e + 1,), where each trail begins.
        serial: int64 (e,), serial number of each trail.
        company, product, lot, made_day: parts of its codes.
        agg_share: trails that have a commissioning record.
    """

    key: int
    epc: Int32
    site: Int32
    op: Int8
    time_us: Int64
    first: Int64
    serial: Int64
    company: int
    product: int
    lot: int
    made_day: int
    agg_share: float
    _unused: list[int] | None = field(default=None, repr=False)
    _box_size: float = field(default=0.0, repr=False)

    def trail(self, e: int) -> list[Key]:
        """The scans of the e-th trail, by time."""
        a, b = self.first[e], self.first[e + 1]
        return list(
            zip(
                self.time_us[a:b].tolist(),
                self.site[a:b].tolist(),
                self.op[a:b].tolist(),
                strict=True,
            )
        )

    def mates(self, key: Key) -> list[int]:
        """Trails with the scan `key`: read together at one portal."""
        return self._trails((self.time_us == key[0]) & (self.site == key[1]) & (self.op == key[2]))

    def reading(self, op: int) -> list[int]:
        """Trails with a scan of the operation."""
        return self._trails(self.op == op)

    def _trails(self, here: Bool) -> list[int]:
        return (np.searchsorted(self.first, np.flatnonzero(here), side="right") - 1).tolist()

    def box_size(self) -> float:
        """Usual number of items read together after the line."""
        if not self._box_size:
            inner = (self.op > Op.AGGREGATION) & (self.op < Op.SALE)
            _, count = np.unique(self.time_us[inner], return_counts=True)
            self._box_size = max(1.0, float(np.median(count))) if len(count) else 1.0
        return self._box_size

    def unused(self) -> list[int]:
        """Serial numbers in the lot's range that no code of it has."""
        if self._unused is None:
            serials = np.unique(self.serial)
            full = np.arange(serials[0], serials[-1] + 1) if len(serials) else serials
            wide = len(full) > 4 * len(serials)
            self._unused = [] if wide else np.setdiff1d(full, serials).tolist()
        return self._unused


@dataclass
class Plan:
    """What one case changes in a trail, written so that it fits every item of a box.

    Attributes:
        pivot: the scan that the items of a box share; the case starts there.
        move: scans that are recorded otherwise.
        drop_after_us: scans of the trail later than this do not happen, but for the pivot's second
            reading.
        add: scans that are added.
        cause: scans that stay as they are and belong to the cause.
        known: "all" cause scans, only the "last" (the second of a pair), or "never".
        known_from_us: with "all": only scans from then.
        came_with: a scan: who was read there belongs to the box, though the pivot missed them.
        told_by: a scan that stays as it is, with which the cause cannot be. To an item that was not
            read there it happens, too, and nobody has to know.
        within_us: known only where the cause is recorded so soon after the scan before it, which
            errors of clocks may prevent; 0 is no matter.
        blur: bits on the cause scans; that of the order on the scan of `told_by`, too.
        blur_next: bits on the next scan after the cause; with `blur_rest` on all after its first.
        blur_rest: see `blur_next`.
        forge: makes the code of a counterfeit; its trail is `add`, the genuine one stays.
        rename: the forged code takes the place of the genuine one.
        few: how many items of the box it happens to.
        shift_us: every scan from the pivot on is later by this.
    """

    pivot: Key
    move: dict[Key, Key] = field(default_factory=dict)
    drop_after_us: int | None = None
    add: list[Key] = field(default_factory=list)
    cause: set[Key] = field(default_factory=set)
    known: str = "all"
    known_from_us: int | None = None
    came_with: Key | None = None
    told_by: Key | None = None
    within_us: int = 0
    blur: int = 0
    blur_next: int = 0
    blur_rest: bool = False
    forge: Callable[[int], str] | None = None
    rename: bool = False
    few: int = 1
    shift_us: int = 0

    def changed(self) -> list[Key]:
        """The scans that are new or recorded otherwise."""
        shifted = [(self.pivot[0] + self.shift_us, *self.pivot[1:])] if self.shift_us else []
        return [*self.move.values(), *self.add, *shifted]


@dataclass
class Case:
    """What the plan of a case may look at.

    Attributes:
        lot: its lot.
        e: which trail of the lot; a plan may turn to another.
        trail: its scans by time.
        seen: what the scans show of the network.
        rng: the stream of the lot.
        whole_box: the box is tampered with, not one item.
    """

    lot: LotView
    e: int
    trail: list[Key]
    seen: Estimate
    rng: np.random.Generator
    whole_box: bool

    def uniform(self, least: float, most: float) -> float:
        """A number between least and most."""
        return float(least + (most - least) * self.rng.random())

    def pick(self, options: Sequence[T]) -> T | None:
        """One of the options, None where there is none."""
        return options[int(self.rng.random() * len(options))] if options else None

    def legs(self, least_tier: int = Tier.WMS) -> list[int]:
        """Where in the trail a leg begins: an outbound, then the next tier's inbound."""
        t = self.trail
        return [
            i
            for i in range(len(t) - 1)
            if OP_DIRECTION[t[i][2]] == -1
            and t[i + 1][2] == t[i][2] + 1
            and t[i][2] != Op.RETAIL_OUT
            and t[i][1] != t[i + 1][1]
            and t[i][2] >= 2 * least_tier
        ]

    def stays(self) -> list[int]:
        """Where in the trail a stay begins: an inbound, then the outbound of the same site."""
        t = self.trail
        return [
            i
            for i in range(len(t) - 1)
            if OP_DIRECTION[t[i][2]] == 1 and t[i + 1][2] == t[i][2] + 1 and t[i][1] == t[i + 1][1]
        ]

    def box_of(self, i: int) -> int:
        """How many items were read with scan i of the trail."""
        return len(self.lot.mates(self.trail[i]))

    def arrival(self, start: int, end: int, left_us: int) -> int:
        """When goods that leave at `left_us` arrive, as goods usually do, microseconds."""
        ratio = self.seen.ratio[int(self.rng.random() * len(self.seen.ratio))]
        return left_us + int(self.seen.typical_h[start, end] * ratio * HOUR_US)

    def slot(self, op: int, least_us: int, most_us: int) -> int | None:
        """A time in the window, as likely as the operation is at that hour of the week."""
        first, last = least_us // HOUR_US, most_us // HOUR_US
        if last < first or most_us <= least_us:
            return None
        last = min(last, first + 4 * WEEK_H)
        week = int(hour_of_week(np.array([least_us]))[0])
        bins = (week + np.arange(last - first + 1)) % WEEK_H
        total = np.cumsum(self.seen.hours[op][bins])
        if total[-1] <= 0:
            return None
        h = int(np.searchsorted(total, self.rng.random() * total[-1], side="right"))
        time = (first + h) * HOUR_US + int(self.rng.random() * HOUR_US)
        return time if least_us < time < most_us else None

    def stay_end(self, op: int, since_us: int) -> int | None:
        """When goods that came at `since_us` do `op`, as goods usually do."""
        table = self.seen.stay_h[op]
        hours = float(table[int(self.rng.random() * len(table))])
        middle = since_us + int(hours * HOUR_US)
        least = max(since_us + HOUR_US // 2, middle - DAY_US)
        return self.slot(op, least, max(middle, least) + DAY_US)

    def shop_life(self, shop: int, since_us: int) -> list[Key]:
        """What follows at a shop after goods came: on the shelf, sold."""
        shelf = self.stay_end(Op.RETAIL_OUT, since_us)
        if shelf is None:
            return []
        sold = self.stay_end(Op.SALE, shelf)
        on_shelf = (shelf, shop, int(Op.RETAIL_OUT))
        return [on_shelf] if sold is None else [on_shelf, (sold, shop, int(Op.SALE))]

    def life(self, site: int, op: int, since_us: int) -> list[Key]:
        """What follows after goods came to a shop, or to a wholesaler and on to a shop."""
        if op == Op.RETAIL_IN:
            return self.shop_life(site, since_us)
        left = self.stay_end(Op.WHOLESALE_OUT, since_us)
        if left is None:
            return []
        out = (left, site, int(Op.WHOLESALE_OUT))
        shops = self.shops(site)
        if not len(shops):
            return [out]
        shop = int(shops[int(self.rng.random() * len(shops))])
        came = self.arrival(site, shop, left)
        return [out, (came, shop, int(Op.RETAIL_IN)), *self.shop_life(shop, came)]

    def shops(self, wholesaler: int) -> npt.NDArray[np.integer]:
        """Retailers that the wholesaler ships such goods to, as often as it does, or any goods
        where it has none.
        """
        usual = self.seen.usual_next(self.lot.product, wholesaler, Tier.RETAIL)
        return usual if len(usual) else self.seen.next_sites(wholesaler, Tier.RETAIL)

    def kilometres(self, start: int, ends: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Distance from start to each end."""
        return self.seen.sites.distance_km(
            np.full(len(ends), start, dtype=np.int32), ends.astype(np.int32)
        )
