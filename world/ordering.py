"""evtOrderErr: operations recorded in an order in which they cannot have happened."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from trail.scan import HOUR_US, Op
from world.case import DAY_US, DUP, JUMP, LOC, MINUTE_US, ORDER, SECOND_US, Case, Plan
from world.estimate import RARE, WEEK_H, hour_of_week

ARRIVAL_RECORDED_EARLY = 0.5
"""In so many inversions the arrival is early, in the others the departure is late; at retailers,
which open late, always the arrival, or the missing early departures would give them away."""


def swapped(case: Case) -> Plan | None:
    """The in and the out of one stay are recorded as each other."""
    i = case.pick(case.stays())
    if i is None:
        return None
    into, out = case.trail[i], case.trail[i + 1]
    return Plan(
        into,
        move={into: (into[0], into[1], out[2]), out: (out[0], out[1], into[2])},
        known="last",
        blur=LOC,
        blur_next=ORDER | LOC,
    )


def second_inbound(case: Case) -> Plan | None:
    """Goods that never left are received a second time."""
    i = case.pick(case.stays())
    if i is None:
        return None
    into, out = case.trail[i], case.trail[i + 1]
    time = case.slot(into[2], into[0] + 2 * HOUR_US, min(out[0], into[0] + 14 * DAY_US))
    if time is None:
        return None
    return Plan(into, add=[(time, into[1], into[2])], blur=DUP)


def _opening_hours_from(case: Case, op: int, start_us: int, hours: int) -> int:
    """The time by which `op` has been open so many hours since `start_us`, or before it if < 0."""
    rate = case.seen.hours[op]
    step = 1 if hours > 0 else -1
    start = int(hour_of_week(np.array([start_us]))[0])
    open_then = (rate > RARE * rate.sum())[(start + step * np.arange(1, WEEK_H + 1)) % WEEK_H]
    return start_us + step * (1 + int(np.searchsorted(np.cumsum(open_then), abs(hours)))) * HOUR_US


def _arrives_before_leaving(
    case: Case, usual: Callable[[int, int, int], int | None]
) -> Plan | None:
    """The arrival of a leg is recorded early or its departure late.

    Args:
        case: the case.
        usual: operation, the other scan's time, -1 for earlier or 1 for later -> a time.
    """
    i = case.pick(case.legs())
    if i is None:
        return None
    out, into = case.trail[i], case.trail[i + 1]
    early = into[2] == Op.RETAIL_IN or case.rng.random() < ARRIVAL_RECORDED_EARLY
    wrong, right = (into, out) if early else (out, into)
    time = usual(wrong[2], right[0], -1 if early else 1)
    if time is None:
        return None
    if early and i and time <= case.trail[i - 1][0]:
        return None
    if not early and i + 2 < len(case.trail) and time >= case.trail[i + 2][0]:
        return None
    return Plan(
        right,
        move={wrong: (time, wrong[1], wrong[2])},
        cause={right},
        known="last",
        blur=JUMP | LOC | DUP,
        blur_next=JUMP | LOC | ORDER,
    )


def before_leaving(case: Case) -> Plan | None:
    """Goods are received at a site one to six opening hours before they leave the one before."""

    def usual(op: int, other_us: int, step: int) -> int | None:
        near, far = other_us + step * HOUR_US, _opening_hours_from(case, op, other_us, step * 6)
        return case.slot(op, min(near, far), max(near, far))

    return _arrives_before_leaving(case, usual)


def just_before_leaving(case: Case) -> Plan | None:
    """An item is received at a site 10 to 60 minutes before it leaves the one before."""

    def usual(op: int, other_us: int, step: int) -> int | None:
        near, far = other_us + step * 10 * MINUTE_US, other_us + step * HOUR_US
        return case.slot(op, min(near, far), max(near, far))

    return _arrives_before_leaving(case, usual)


def left_before_arrival(case: Case) -> Plan | None:
    """Goods leave a site some minutes to hours before they are received there."""
    stays = [i for i in case.stays() if case.trail[i][2] != Op.WMS_IN]
    i = case.pick(stays)
    if i is None:
        return None
    into, out = case.trail[i], case.trail[i + 1]
    gap = int(case.uniform(HOUR_US / 4, 4 * HOUR_US))
    if case.rng.random() < 0.5:
        move = {out: (into[0] - gap, out[1], out[2])}
        if i and move[out][0] <= case.trail[i - 1][0]:
            return None
        stays_as_is = into
    else:
        move = {into: (out[0] + gap, into[1], into[2])}
        if i + 2 < len(case.trail) and move[into][0] >= case.trail[i + 2][0]:
            return None
        stays_as_is = out
    return Plan(
        out if stays_as_is == into else into,
        move=move,
        cause={stays_as_is},
        known="last",
        blur=LOC | JUMP,
        blur_next=ORDER | LOC | JUMP,
    )


def below_skew(case: Case) -> Plan | None:
    """Two items of a run are commissioned in the wrong order, by a second."""
    first = case.trail[0]
    if first[2] != Op.AGGREGATION:
        return None
    shift = SECOND_US if case.rng.random() < 0.5 else -SECOND_US
    return Plan(first, move={first: (first[0] + shift, first[1], first[2])}, known="never")


def after_sale(case: Case) -> Plan | None:
    """Sold goods that nobody brought back leave the store room."""
    last = case.trail[-1]
    if last[2] != Op.SALE:
        return None
    time = case.slot(Op.RETAIL_OUT, last[0] + 3 * HOUR_US, last[0] + 10 * DAY_US)
    if time is None:
        return None
    return Plan(last, add=[(time, last[1], int(Op.RETAIL_OUT))], blur=DUP)
