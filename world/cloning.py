"""epcDup: a second object bears the code of a genuine one; the genuine trail stays."""

from __future__ import annotations

import numpy as np

from trail.scan import HOUR_US, Op, Tier
from world.case import ALL, DAY_US, DUP, MINUTE_US, Case, Plan

FAR_KM = 100.0
IMPOSSIBLE_KMH = 110.0
"""No lorry covers the beeline at this speed."""
_BLUR = ALL & ~DUP & ~1


def _elsewhere(case: Case, least_us: int, most_us: int) -> Plan | None:
    """The code is read once more at a far site of the same tier, soon after."""
    moving = [k for k in case.trail if Op.WMS_IN <= k[2] <= Op.RETAIL_OUT]
    pivot = case.pick(moving)
    if pivot is None:
        return None
    time, site, op = pivot
    again = case.slot(op, time + least_us, time + most_us)
    if again is None:
        return None
    gap_us = again - time
    sites = case.seen.tier_sites(int(case.seen.sites.tier[site]))
    km = case.kilometres(site, sites)
    far = sites[(km >= max(FAR_KM, IMPOSSIBLE_KMH * gap_us / HOUR_US)) & np.isfinite(km)]
    if not len(far):
        return None
    clone = (again, int(far[int(case.rng.random() * len(far))]), op)
    return Plan((time, site, op), add=[clone], blur=_BLUR, blur_next=ALL & ~1, blur_rest=False)


def far_at_once(case: Case) -> Plan | None:
    """The code is read at a far site of the same tier within ten minutes."""
    return _elsewhere(case, MINUTE_US, 10 * MINUTE_US)


def far_in_hours(case: Case) -> Plan | None:
    """The code is read at a far site one to three hours later."""
    return _elsewhere(case, HOUR_US, 3 * HOUR_US)


def at_shop_already(case: Case) -> Plan | None:
    """A clone comes to a retailer of the region while the genuine one is at the wholesaler."""
    t = case.trail
    at = [i for i in case.stays() if t[i][2] == Op.WHOLESALE_IN and t[i + 1][0] - t[i][0] > DAY_US]
    i = case.pick(at)
    if i is None:
        return None
    place, came, left = t[i][1], t[i][0], t[i + 1][0]
    shops = case.shops(place)
    if not len(shops):
        return None
    shop = int(shops[int(case.rng.random() * len(shops))])
    time = case.slot(Op.RETAIL_IN, came + (left - came) // 4, left)
    if time is None:
        return None
    clone = [(time, shop, int(Op.RETAIL_IN)), *case.shop_life(shop, time)]
    return Plan(t[i], add=clone, blur=_BLUR, blur_next=ALL & ~1, blur_rest=True)


def second_sale(case: Case) -> Plan | None:
    """The code is sold a second time, days later, at this shop or another of the region."""
    sales = [k for k in case.trail if k[2] == Op.SALE]
    if len(sales) != 1 or case.trail[-1] != sales[0]:
        return None
    time, shop, op = sales[0]
    region = case.seen.region
    shops = [int(s) for s in case.seen.tier_sites(Tier.RETAIL) if region[s] == region[shop]]
    other = shop if case.rng.random() < 0.3 else int(case.pick(shops) or shop)
    again = case.slot(Op.SALE, time + HOUR_US, time + 10 * DAY_US)
    if again is None:
        return None
    return Plan(sales[0], add=[(again, other, op)], blur=_BLUR)


def whole_box(case: Case) -> Plan | None:
    """A cloned box is sold through a lawful retailer; told only when the tracks conflict."""
    t = case.trail
    at = [i for i in case.legs(Tier.WHOLESALE) if t[i + 1][2] == Op.RETAIL_IN]
    i = case.pick(at)
    if i is None or case.box_of(i) < 4:
        return None
    place, left, arrived = t[i][1], t[i][0], t[i + 1][0]
    shops = case.shops(place)
    shops = shops[shops != t[i + 1][1]]
    if not len(shops):
        return None
    shop = int(shops[int(case.rng.random() * len(shops))])
    # It comes when the genuine box could, and first: until the other comes, nothing is wrong.
    usual_us = float(case.seen.typical_h[place, shop]) * HOUR_US
    least, most = left + int(0.9 * usual_us), min(left + int(2 * usual_us), arrived - MINUTE_US)
    time = case.slot(Op.RETAIL_IN, least, most) if least < most else None
    if time is None:
        return None
    clone = [(time, shop, int(Op.RETAIL_IN)), *case.shop_life(shop, time)]
    return Plan(
        t[i],
        add=clone,
        known_from_us=arrived,
        told_by=t[i + 1],
        blur=_BLUR,
        blur_next=ALL & ~1,
        blur_rest=True,
    )
