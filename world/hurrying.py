"""jump: goods that arrive sooner than they can."""

from __future__ import annotations

import numpy as np

from trail.scan import HOUR_US, Tier
from world.case import DAY_US, DUP, LOC, ORDER, SECOND_US, Case, Key, Plan

NEAR_KM = 20.0
FAST_KM = 60.0
PLAUSIBLE_KM = 60.0
"""Up to here 0.6-0.8 of the route's time is within what lorries do."""
SHARE = (0.35, 0.55)
"""Of the route's usual time, that hurried goods need."""
TOLD_SHARE = 0.6
"""Of the route's usual time; with more of it on the record nobody can know."""


def _early(case: Case, i: int, time_us: int, **marks: object) -> Plan | None:
    """The arrival after scan i is recorded at `time_us`."""
    out, into = case.trail[i], case.trail[i + 1]
    if not out[0] < time_us < into[0]:
        return None
    moved: Key = (time_us, into[1], into[2])
    return Plan(into, move={into: moved}, told_by=out, **marks)  # type: ignore[arg-type]


def _told(case: Case, i: int) -> int:
    """How late the arrival after scan i may be recorded and still tell, microseconds."""
    return int(TOLD_SHARE * _typical_us(case, i))


def _leg(case: Case, least_km: float, most_km: float = float("inf")) -> int | None:
    legs = [i for i in case.legs() if least_km <= _km(case, i) <= most_km]
    return case.pick(legs)


def _km(case: Case, i: int) -> float:
    km = float(case.kilometres(case.trail[i][1], np.array([case.trail[i + 1][1]]))[0])
    return km if np.isfinite(km) else 0.0


def _typical_us(case: Case, i: int) -> float:
    return float(case.seen.typical_h[case.trail[i][1], case.trail[i + 1][1]]) * HOUR_US


def minute(case: Case) -> Plan | None:
    """Goods arrive a minute after they left a site 20 km away or more."""
    i = _leg(case, NEAR_KM)
    if i is None:
        return None
    time = case.trail[i][0] + int(case.uniform(30, 120)) * SECOND_US
    return _early(case, i, time, blur=DUP | ORDER | LOC, within_us=_told(case, i))


def fast(case: Case) -> Plan | None:
    """Goods cover the beeline of 60 km or more at 150-300 km/h."""
    i = _leg(case, FAST_KM)
    if i is None:
        return None
    hours = _km(case, i) / case.uniform(150.0, 300.0)
    time = case.trail[i][0] + int(hours * HOUR_US)
    return _early(case, i, time, blur=DUP | ORDER | LOC, within_us=_told(case, i))


def route_share(case: Case) -> Plan | None:
    """Goods need 0.35 to 0.55 of the route's usual time."""
    i = _leg(case, NEAR_KM)
    if i is None:
        return None
    time = case.trail[i][0] + int(case.uniform(*SHARE) * _typical_us(case, i))
    return _early(case, i, time, within_us=_told(case, i))


def before_pallet(case: Case) -> Plan | None:
    """An item arrives one to five hours before the pallet that it left with."""
    i = _leg(case, NEAR_KM)
    if i is None or case.box_of(i) < 4 or case.box_of(i + 1) < 4:
        return None
    time = case.trail[i + 1][0] - int(case.uniform(1.0, 5.0) * HOUR_US)
    if time < case.trail[i][0] + 0.6 * _typical_us(case, i):
        return None
    return _early(case, i, time, blur=LOC)


def plausible(case: Case) -> Plan | None:
    """A whole box needs 0.6 to 0.8 of the route's usual time; lorries do."""
    i = _leg(case, 0.0, PLAUSIBLE_KM)
    if i is None or case.box_of(i + 1) < 4:
        return None
    share = case.uniform(0.6, 0.8)
    return _early(case, i, case.trail[i][0] + int(share * _typical_us(case, i)), known="never")


def long_rest(case: Case) -> Plan | None:
    """A whole box rests about 30 days longer; strange, but no impossible movement."""
    t = case.trail
    stays = [i for i in case.stays() if t[i][2] >= 2 * Tier.HUB - 1 and case.box_of(i + 1) >= 4]
    i = case.pick(stays)
    if i is None:
        return None
    rest = (28 if case.rng.random() < 0.5 else 35) * DAY_US
    return Plan(t[i + 1], known="never", shift_us=rest)
