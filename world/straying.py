"""locErr: goods at a place where they do not belong."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from trail.scan import HOUR_US, Op, Tier
from world.case import DAY_US, DUP, JUMP, LOC, ORDER, Case, Key, Plan
from world.estimate import USED_LOTS

Sites_ = npt.NDArray[np.integer]


def tier_mismatch(case: Case) -> Plan | None:
    """A scan of one kind is made at a site of another: a wholesale receipt in a shop."""
    inner = [k for k in case.trail if Op.WMS_IN <= k[2] <= Op.RETAIL_OUT]
    pivot = case.pick(inner)
    if pivot is None:
        return None
    time, site, op = pivot
    tier = case.seen.sites.tier
    others = np.flatnonzero((tier > Tier.FACTORY) & (tier != tier[site]))
    near = others[np.argsort(case.kilometres(site, others), kind="stable")[:6]]
    if not len(near):
        return None
    wrong = int(near[int(case.rng.random() * len(near))])
    return Plan(
        (time, site, op),
        move={(time, site, op): (time, wrong, op)},
        blur=ORDER | JUMP | DUP,
        blur_next=LOC | ORDER | JUMP | DUP,
    )


def _diverted(case: Case, i: int, choices: Sites_, **marks: object) -> Plan | None:
    """Goods that left with scan i arrive at one of the choices, and stay in that branch."""
    left, start, _ = case.trail[i]
    _, planned, op = case.trail[i + 1]
    choices = choices[choices != planned]
    if not len(choices):
        return None
    wrong = int(choices[int(case.rng.random() * len(choices))])
    came = case.arrival(start, wrong, left)
    add: list[Key] = [(came, wrong, op), *case.life(wrong, op, came)]
    return Plan(
        case.trail[i],
        drop_after_us=left,
        add=add,
        came_with=case.trail[i + 1],
        **marks,  # type: ignore[arg-type]
    )


def _leg(case: Case, least_tier: int = Tier.HUB) -> int | None:
    """A leg to a wholesaler or retailer on which the box stays together."""
    legs = [i for i in case.legs(least_tier) if case.trail[i + 1][2] in (5, 7)]
    chosen = case.pick(legs)
    if chosen is None:
        return None
    out, into = case.box_of(chosen), case.box_of(chosen + 1)
    return chosen if out >= 4 and into >= 0.5 * out else None


def unused_edge(case: Case) -> Plan | None:
    """Goods arrive at a site that their last site never ships to."""
    i = _leg(case)
    if i is None:
        return None
    start, tier = case.trail[i][1], int(case.seen.sites.tier[case.trail[i + 1][1]])
    sites = case.seen.tier_sites(tier)
    return _diverted(case, i, sites[case.seen.used[start][sites] == 0])


def wrong_market(case: Case) -> Plan | None:
    """Goods arrive over a lawful edge in a region where their product is not sold."""
    i = _leg(case)
    if i is None or case.lot.product not in case.seen.sold:
        return None
    start, tier = case.trail[i][1], int(case.seen.sites.tier[case.trail[i + 1][1]])
    sites = case.seen.tier_sites(tier)
    sites = sites[case.seen.used[start][sites] >= USED_LOTS]
    return _diverted(case, i, sites[~case.seen.in_market(case.lot.product, sites)])


def _lawful(case: Case, i: int) -> Sites_:
    start, tier = case.trail[i][1], int(case.seen.sites.tier[case.trail[i + 1][1]])
    return case.seen.usual_next(case.lot.product, start, tier)


def strays(case: Case) -> Plan | None:
    """An item, or two or three, leaves with its box but arrives at another lawful site."""
    i = _leg(case)
    if i is None:
        return None
    few = 1 if case.rng.random() < 0.8 else 2 + int(case.rng.random() * 2)
    plan = _diverted(case, i, _lawful(case, i), few=few)
    if plan is None:
        return None
    box_came, plan.came_with = case.trail[i + 1][0], None  # who was not read as it left, did not
    if few > 1:
        plan.known_from_us = box_came
    if plan.add[0][0] < box_came:  # whether it strayed or came before its box, nobody knows yet
        plan.blur = JUMP
    return plan


def box_diverted(case: Case) -> Plan | None:
    """A whole box arrives at another lawful shop of its market; nothing tells."""
    # What comes to a wholesaler is a pallet: it would tell that its boxes do not part there.
    i = _leg(case, Tier.WHOLESALE)
    if i is None:
        return None
    return _diverted(case, i, _lawful(case, i), known="never")


def backwards(case: Case) -> Plan | None:
    """Goods of a shop are received at their wholesaler again, and stay there."""
    t = case.trail
    at = [i for i in case.legs(Tier.WHOLESALE) if t[i + 1][2] == Op.RETAIL_IN]
    if not at:
        return None
    place, shop = t[at[0]][1], t[at[0] + 1]
    time = case.slot(Op.WHOLESALE_IN, shop[0] + 3 * HOUR_US, shop[0] + 3 * DAY_US)
    if time is None:
        return None
    back = (time, place, int(Op.WHOLESALE_IN))
    return Plan(shop, drop_after_us=shop[0], add=[back], blur=ORDER | DUP)
