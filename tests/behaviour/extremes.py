"""Extreme samples of each anomaly, made by hand from honest scans: nearly all must be found."""

from __future__ import annotations

import numpy as np

from trail.scan import DAY_US, HOUR_US, OP_DIRECTION, Anomaly, Op, Tier


def sold_again(world, most, times=1):
    """Keys of further sales of codes that were sold, each at another shop half an hour later."""
    s, found = world.scans, []
    shops = np.flatnonzero(world.sites.tier == Tier.RETAIL)
    for n, mine in enumerate(world.trails):
        last = int(mine[-1])
        if s.op[last] == Op.SALE and len(mine) >= 6:
            others = shops[shops != s.site[last]]
            found.append(
                [
                    (
                        int(s.epc[last]),
                        int(others[(n + 7 * k) % len(others)]),
                        int(Op.SALE),
                        int(s.time_us[last]) + (k + 1) * HOUR_US // 2,
                    )
                    for k in range(times)
                ]
            )
    return found[:: max(1, len(found) // most)][:most]


def one_minute_jumps(world):
    at = world.legs(least_km=20, most=100)
    return world.moved(at, world.scans.time_us[world.before(at)] + HOUR_US // 60), at


def thirty_day_gaps_with_reversal(world):
    """Out, thirty days of silence, and in again at the site that was left: the stay is inverted."""
    s, at, times = world.scans, [], {}
    for mine in world.trails[::4]:
        for into, out in zip(mine[:-1].tolist(), mine[1:].tolist(), strict=True):
            stay = OP_DIRECTION[s.op[into]] == 1 and s.op[out] == s.op[into] + 1
            if stay and s.site[into] == s.site[out] and s.op[into] > Op.WMS_IN:
                after = mine[np.flatnonzero(mine == into)[0] :]
                times |= {int(i): int(s.time_us[i]) + 30 * DAY_US for i in after}
                times[into], times[out] = times[out], times[into]
                at.append(into)
                break
        if len(at) == 100:
            break
    moved = np.array(list(times))
    return world.moved(moved, np.array(list(times.values()))), np.array(at)


def location_loops(world):
    """Goods leave a wholesaler, come to a factory's warehouse, and leave it for the shop."""
    s, more = world.scans, []
    place = np.flatnonzero(world.sites.tier == 1)
    for n, mine in enumerate(world.trails[::3]):
        here = mine[s.op[mine] == Op.WHOLESALE_OUT]
        if len(here):
            i, far = int(here[0]), int(place[n % len(place)])
            epc, time = int(s.epc[i]), int(s.time_us[i])
            more.append((epc, far, int(Op.WHOLESALE_IN), time + 9 * HOUR_US))
        if len(more) == 100:
            break
    return world.with_more(more), len(s) + np.arange(len(more))


def double_sales(world):
    more = [key for of_code in sold_again(world, 100) for key in of_code]
    return world.with_more(more), len(world.scans) + np.arange(len(more))


def malformed_codes(world):
    codes = world.scans.codes.text.to_pylist()
    chosen = np.arange(0, len(codes), max(1, len(codes) // 100))
    for i in chosen.tolist():
        codes[i] = codes[i][:-9] + "000000000"
    at = np.array(
        [int(mine[-1]) for mine in world.trails if world.scans.epc[mine[0]] in set(chosen.tolist())]
    )
    return world.recoded(codes), at


EXTREME = {
    Anomaly.JUMP: one_minute_jumps,
    Anomaly.ORDER: thirty_day_gaps_with_reversal,
    Anomaly.LOC: location_loops,
    Anomaly.DUP: double_sales,
    Anomaly.FAKE: malformed_codes,
}
