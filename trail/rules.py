"""The rule baseline: one rule an anomaly, graded 0-100, each naming its evidence.

Rules are deterministic and look at single scans. They are the baseline, the answer while a model
knows too little, and a feature; they are never the truth. A rule's docstring is what a user reads
in an explanation. A check whose master data is missing abstains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from trail.epc import Fault, fault_sentence
from trail.facts import Facts
from trail.order import Index
from trail.scan import EVENT_TYPES, Bool, Float32, Int8, Op, Scans
from trail.sites import Sites

FLAG: Final = 50.0
"""A rule flags a scan from this score on."""

ENOUGH_COMMISSIONED: Final = 20
"""Commissioning scans of a lot from which the lot has a commissioning record."""
FAST_KMH: Final = 120.0
IMPOSSIBLE_KMH: Final = 240.0
CLOCK_H: Final = 1.0
"""Two times may be so far apart by clocks that drift or hands that type."""
FAR_KM: Final = 5.0
CLONE_KM: Final = 30.0
REPEAT_S: Final = 900.0
"""A reader may repeat a scan for some minutes; after this it is an operation of its own."""
RARE_MARKET: Final = 0.01


class Reason(IntEnum):
    """Which check of a rule spoke; 0 is none."""

    NONE = 0
    MALFORMED = 1
    COMPANY = 2
    PRODUCT = 3
    TOO_EARLY = 4
    SERIAL_RANGE = 5
    NOT_COMMISSIONED = 6
    LATE_COMMISSIONING = 7
    SAME_SECOND = 8
    SECOND_SALE = 9
    TWO_PLACES = 10
    WRONG_SITE = 11
    BACKWARDS = 12
    SKIPS = 13
    UNUSED_EDGE = 14
    WRONG_MARKET = 15
    AFTER_SALE = 16
    IN_AFTER_OUT = 17
    TWICE = 18
    LEFT_LATE = 19
    TOO_FAST = 20
    BELOW_ROUTE = 21
    IMPOSSIBLE = 22


HARD: Final = frozenset(
    {
        Reason.MALFORMED,
        Reason.COMPANY,
        Reason.PRODUCT,
        Reason.SAME_SECOND,
        Reason.SECOND_SALE,
        Reason.WRONG_SITE,
        Reason.IMPOSSIBLE,
    }
)
"""Reasons that no model may overrule: a format, a register (of companies, products, or sites), one
object in two places, physics."""
_IS_HARD: Final[Bool] = np.isin(np.arange(max(Reason) + 1), [int(r) for r in HARD])


@dataclass(frozen=True, slots=True)
class Findings:
    """What the five rules found in n scans.

    Attributes:
        score: float32 (n, 5), 0-100.
        reason: int8 (n, 5), the `Reason` behind each score.
    """

    score: Float32
    reason: Int8

    @property
    def hard(self) -> Float32:
        """Scores of the hard reasons alone, float32 (n, 5), 0 elsewhere."""
        return np.where(_IS_HARD[self.reason], self.score, np.float32(0))


Score = float | Callable[[Index], npt.NDArray[np.floating[Any]]]
"""One score for all, or a score for each scan at some positions."""


class _Graded:
    """The highest score so far and the reason for it."""

    def __init__(self, n: int) -> None:
        self.score = np.zeros(n, dtype=np.float32)
        self.reason = np.zeros(n, dtype=np.int8)

    def raise_to(self, where: Bool, score: Score, reason: Reason) -> None:
        """Raise the score of the scans in `where`, unless it is higher or a hard one already."""
        at = where.nonzero()[0]
        if not len(at):
            return
        value = np.asarray(score(at) if callable(score) else score, dtype=np.float32)
        higher = value > self.score[at]
        if reason not in HARD:
            higher &= ~_IS_HARD[self.reason[at]]
        self.score[at[higher]] = np.broadcast_to(value, at.shape)[higher]
        self.reason[at[higher]] = reason


def epc_fake(facts: Facts) -> _Graded:
    """The code is not a genuine one.

    It is malformed, names a company or product that is not registered, was made after it was
    first scanned, or has a serial number outside the commissioned range of its lot; or the lot
    has a commissioning record and this code is not in it.
    """
    found = _Graded(len(facts.op))
    found.raise_to(facts.fault > 0, 95, Reason.MALFORMED)
    found.raise_to((facts.fault & Fault.STRUCTURE) > 0, 100, Reason.MALFORMED)
    found.raise_to(facts.company_unknown, 92, Reason.COMPANY)
    found.raise_to(facts.product_unknown, 90, Reason.PRODUCT)
    found.raise_to(facts.age_days < -1, 80, Reason.TOO_EARLY)
    recorded = facts.mates.lot_commissioned >= ENOUGH_COMMISSIONED
    outside = (facts.serial < facts.mates.serial_low) | (facts.serial > facts.mates.serial_high)
    found.raise_to(recorded & outside, 85, Reason.SERIAL_RANGE)
    found.raise_to(recorded & ~facts.commissioned, 70, Reason.NOT_COMMISSIONED)
    late = recorded & (facts.mates.commission_gap_s > 3600)
    found.raise_to(late, 40, Reason.LATE_COMMISSIONING)
    return found


def epc_dup(facts: Facts) -> _Graded:
    """One code was in two places.

    It was scanned in the same second at two sites (a factory and its warehouse excepted), sold a
    second time elsewhere, or seen so far away so soon that no single object can have done it.
    """
    found = _Graded(len(facts.op))
    elsewhere = (facts.previous >= 0) & ~facts.same_site & ~facts.factory_pair
    found.raise_to(elsewhere & (facts.gap_s == 0), 100, Reason.SAME_SECOND)
    second_sale = (facts.op == Op.SALE) & facts.sold_elsewhere
    found.raise_to(second_sale, 95, Reason.SECOND_SALE)
    too_far = (facts.km >= CLONE_KM) & (facts.speed_kmh > FAST_KMH) & (facts.op_step != 1)
    found.raise_to(too_far, _too_fast(facts), Reason.TWO_PLACES)
    return found


def loc_err(facts: Facts) -> _Graded:
    """The scan is in the wrong place of the flow.

    The site is not one for this operation, goods went back or skipped tiers, took an edge that
    the known network never uses, or reached a region where the product is not sold.
    """
    found = _Graded(len(facts.op))
    found.raise_to(facts.tier_mismatch, 95, Reason.WRONG_SITE)
    found.raise_to(facts.tier_step == -1, 45, Reason.BACKWARDS)
    found.raise_to(facts.tier_step < -1, 75, Reason.BACKWARDS)
    found.raise_to(facts.tier_step == 2, 30, Reason.SKIPS)
    found.raise_to(facts.tier_step > 2, 60, Reason.SKIPS)
    if facts.steps is not None:
        never = facts.steps.known & (facts.steps.edge_used == 0)
        found.raise_to(never, 70, Reason.UNUSED_EDGE)
        rare = facts.steps.market_known & (facts.steps.market_share < RARE_MARKET)
        rare &= facts.op >= Op.WHOLESALE_IN
        found.raise_to(rare, 65, Reason.WRONG_MARKET)
    return found


def evt_order_err(facts: Facts) -> _Graded:
    """The operations are in the wrong order.

    Something happened after the sale, goods arrived at a site that they had just left, arrived or
    left twice, or left a site after they had been scanned further down the chain.
    """
    found = _Graded(len(facts.op))
    later = (facts.sold_before > 0) & (facts.since_sale_s > REPEAT_S)
    found.raise_to(later & ~facts.sold_elsewhere, 90, Reason.AFTER_SALE)
    found.raise_to(later & (facts.op != Op.SALE), 85, Reason.AFTER_SALE)
    found.raise_to(facts.in_after_out, 85, Reason.IN_AFTER_OUT)
    found.raise_to(facts.again_here & (facts.gap_s > REPEAT_S), 70, Reason.TWICE)
    left_late = facts.out_elsewhere & (facts.op_step < 0)
    found.raise_to(left_late, 75, Reason.LEFT_LATE)
    return found


def jump(facts: Facts) -> _Graded:
    """The movement is impossible, or far too quick for this route.

    The speed between two scans is more than a lorry's, or the leg took far less time than the
    quickest that were ever seen on it.
    """
    found = _Graded(len(facts.op))
    moving = (facts.km >= FAR_KM) & (facts.gap_s > 0)
    fast = moving & (facts.speed_kmh > FAST_KMH)
    beyond_clocks = fast & (facts.km > FAST_KMH * (facts.gap_s / 3600 + CLOCK_H))
    found.raise_to(beyond_clocks, 100, Reason.IMPOSSIBLE)
    found.raise_to(fast, _too_fast(facts), Reason.TOO_FAST)
    if facts.steps is not None:
        arrives = (facts.direction == 1) & ~facts.same_site & (facts.steps.low_h > 0)
        short = facts.gap_s / 3600 / np.maximum(facts.steps.low_h, 1e-6)
        below = arrives & (facts.gap_s > 0) & (short < 0.8)
        found.raise_to(below, lambda at: 100 - 62.5 * short[at], Reason.BELOW_ROUTE)
    return found


RULES: Final[tuple[Callable[[Facts], _Graded], ...]] = (
    epc_fake,
    epc_dup,
    loc_err,
    evt_order_err,
    jump,
)
"""The five rules, in the order of `ANOMALIES`."""


def judge(facts: Facts) -> Findings:
    """Apply the five rules to n scans."""
    found = [rule(facts) for rule in RULES]
    return Findings(
        np.stack([f.score for f in found], axis=1), np.stack([f.reason for f in found], axis=1)
    )


def explain(anomaly: int) -> str:
    """What the rule of an anomaly (column 0-4) says, for people."""
    return " ".join((RULES[anomaly].__doc__ or "").split())


def _too_fast(facts: Facts) -> Score:
    """50 at what a lorry can do, 100 at what is impossible and above."""

    def score(at: Index) -> npt.NDArray[np.floating[Any]]:
        above = np.minimum(facts.speed_kmh[at], IMPOSSIBLE_KMH) - FAST_KMH
        return np.clip(50 + 50 * above / (IMPOSSIBLE_KMH - FAST_KMH), 0, 100)

    return score


def evidence(reason: int, i: int, facts: Facts, scans: Scans, sites: Sites) -> str:
    """One sentence on why a rule scored scan `i` of `facts` (same rows as `scans`)."""
    before = int(facts.previous[i])
    here = _site(sites, int(scans.site[i]))
    was = _site(sites, int(scans.site[before])) if before >= 0 else "nowhere"
    words = {
        "here": here,
        "was": was,
        "op": EVENT_TYPES[int(scans.op[i])],
        "op_before": EVENT_TYPES[int(scans.op[before])] if before >= 0 else "nothing",
        "km": f"{float(facts.km[i]):.0f} km",
        "gap": duration(float(facts.gap_s[i])),
        "speed": f"{float(min(facts.speed_kmh[i], 99_999)):.0f} km/h",
        "fault": fault_sentence(int(facts.fault[i])),
        "sale": duration(float(facts.since_sale_s[i])),
        "serial": f"{int(facts.serial[i])}",
        "range": f"{int(facts.mates.serial_low[i])} to {int(facts.mates.serial_high[i])}",
        "commission_gap": duration(float(facts.mates.commission_gap_s[i])),
    }
    if facts.steps is not None:
        words["low"] = duration(float(facts.steps.low_h[i]) * 3600)
        words["high"] = duration(float(facts.steps.high_h[i]) * 3600)
        words["share"] = f"{100 * float(facts.steps.market_share[i]):.1f} %"
    return _SENTENCE[Reason(reason)].format(**words)


_SENTENCE: Final = {
    Reason.NONE: "",
    Reason.MALFORMED: "The code is malformed: {fault}.",
    Reason.COMPANY: "The code names a company that is not in the registry.",
    Reason.PRODUCT: "The code names a product that is not in its company's registry.",
    Reason.TOO_EARLY: "The code was scanned before its manufacture date.",
    Reason.SERIAL_RANGE: (
        "Serial number {serial} lies outside the lot's commissioned range, {range}."
    ),
    Reason.NOT_COMMISSIONED: (
        "The lot has a commissioning record and this code is not in it; first seen at {here}."
    ),
    Reason.LATE_COMMISSIONING: "Commissioned {commission_gap} after the rest of its lot.",
    Reason.SAME_SECOND: "Scanned in the same second at {was} and at {here}.",
    Reason.SECOND_SALE: "Sold at {here} {sale} after it was sold elsewhere.",
    Reason.TWO_PLACES: (
        "Seen at {here} {gap} after {was}, {km} away: no single object can do that."
    ),
    Reason.WRONG_SITE: "{op} does not belong to a site like {here}.",
    Reason.BACKWARDS: "Went back up the chain, from {was} to {here}.",
    Reason.SKIPS: "Skipped part of the chain between {was} and {here}.",
    Reason.UNUSED_EDGE: "No goods ever went from {was} to {here}.",
    Reason.WRONG_MARKET: "Only {share} of this product goes to the region of {here}.",
    Reason.AFTER_SALE: "{op} at {here} {sale} after the sale.",
    Reason.IN_AFTER_OUT: "Arrived at {here} {gap} after it had left the same site.",
    Reason.TWICE: "{op} at {here} a second time in a row, {gap} apart.",
    Reason.LEFT_LATE: "Left {here} {gap} after it had been seen further down, at {was}.",
    Reason.TOO_FAST: "Arrived {km} away {gap} after the previous scan: {speed}.",
    Reason.IMPOSSIBLE: "Arrived {km} away {gap} after the previous scan: {speed}.",
    Reason.BELOW_ROUTE: ("Arrived {gap} after it left {was}; this route takes {low} to {high}."),
}


def _site(sites: Sites, i: int) -> str:
    name = sites.names[i] or f"site {sites.ids[i]}"
    return name if sites.known[i] else f"{name} (not in the site master)"


def duration(seconds: float) -> str:
    """A time span as a person would say it: "9 minutes", "3.1 hours", "12 days"."""
    for unit, size in (("day", 86_400.0), ("hour", 3_600.0), ("minute", 60.0)):
        if abs(seconds) >= 2 * size or (unit == "minute" and abs(seconds) >= 60):
            value = seconds / size
            text = f"{value:.1f}" if abs(value) < 10 and unit != "minute" else f"{value:.0f}"
            return f"{text} {unit}{'' if text == '1' else 's'}"
    text = f"{seconds:.0f}"
    return f"{text} second{'' if text == '1' else 's'}"
