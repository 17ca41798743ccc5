"""The network's look-up tables against a slow reading of its lists."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trail.small import HONEST, SITES, any_scans, code, scans_of
from trail import network
from trail.facts import previous_of
from trail.network import BoundNetwork, Network, StepTimes
from trail.sites import Sites
from trail.trails import sort

FIELDS = ("center", "spread", "low_h", "high_h")


def learned(items: int = 60) -> Network:
    trails = sort(scans_of([(code(serial=s), HONEST) for s in range(1, items)]))
    return network.fit(trails.scans, previous_of(trails.starts), SITES)


def nothing() -> Network:
    none = np.empty(0, np.int64)
    times = StepTimes(none, none, *(np.empty(0) for _ in FIELDS))
    return Network((), none.reshape(-1, 3), times, times, none.reshape(-1, 3))


def shuffled(seed: int) -> Sites:
    """The sites in another order and under other numbers, some of them unheard of."""
    order = np.random.default_rng(seed).permutation(len(SITES))
    ids = [SITES.ids[i] if i % 4 or seed % 2 else f"new {i}" for i in order]
    names = [SITES.names[i] for i in order]
    columns = (SITES.tier, SITES.latitude, SITES.longitude, SITES.known)
    return Sites.of(ids, names, *(column[order] for column in columns))


def times_of(net: Network, start: str, end: str, ops: int, km: float) -> dict[str, float] | None:
    for table, key in (
        (net.routes, route_key(net, start, end, ops)),
        (net.classes, ops * network._KM_BINS + int(network._km_class(np.array([km]))[0])),
    ):
        row = np.flatnonzero(table.key == key)
        if len(row):
            found = {name: float(getattr(table, name)[row[0]]) for name in FIELDS}
            return {**found, "n": int(table.n[row[0]])}
    return None


def route_key(net: Network, start: str, end: str, ops: int) -> int:
    if start not in net.site_ids or end not in net.site_ids:
        return -1
    pair = net.site_ids.index(start) * len(net.site_ids) + net.site_ids.index(end)
    return pair * 100 + ops


def reckoned(net: Network, sites: Sites, scans, before: int, i: int) -> dict[str, float]:
    """What `Steps` says of scan i, read off the network's lists one by one."""
    start, end = (sites.ids[scans.site[j]] for j in (before, i))
    used = {(net.site_ids[a], net.site_ids[b]): int(n) for a, b, n in net.edges}
    left = sum(n for (a, _), n in used.items() if a == start)
    reached = sum(n for (_, b), n in used.items() if b == end)
    hub = {s: sites.ids[r] for s, r in zip(sites.ids, sites.region, strict=True) if r >= 0}
    into = 0
    if hub.get(end) in net.site_ids:
        into = sum(n for (a, b), n in used.items() if a == start and hub.get(b) == hub[end])
    found = {
        "known": start != end and min(left, reached) >= network.MIN_SITE,
        "edge_used": used.get((start, end), 0),
        "edge_share": used.get((start, end), 0) / max(left, 1),
        "region_used": into,
    }
    hours = (scans.time_us[i] - scans.time_us[before]) / 3.6e9
    km = float(sites.distance_km(scans.site[before : before + 1], scans.site[i : i + 1])[0])
    times = times_of(net, start, end, int(scans.op[before]) * 10 + int(scans.op[i]), km)
    none = dict.fromkeys(("expected_h", "z", "low_h", "high_h", "support"), 0)
    return {**found, **(none if times is None else from_times(times, hours))}


def from_times(times: dict[str, float], hours: float) -> dict[str, float]:
    return {
        "expected_h": math.expm1(times["center"]),
        "z": (math.log1p(hours) - times["center"]) / max(times["spread"], 0.02),
        "low_h": times["low_h"],
        "high_h": times["high_h"],
        "support": times["n"],
    }


def market(net: Network, sites: Sites, scans, i: int) -> tuple[bool, float]:
    codes, epc = scans.codes, scans.epc[i]
    product = int(codes.company[epc]) * 10_000_000 + int(codes.product[epc])
    region = int(sites.region[scans.site[i]])
    sold = {net.site_ids[h]: int(n) for p, h, n in net.markets if p == product}
    if region < 0 or sites.ids[region] not in net.site_ids:
        return False, 0.0
    if sum(sold.values()) < network.MIN_PRODUCT:
        return False, 0.0
    return True, sold.get(sites.ids[region], 0) / sum(sold.values())


@pytest.mark.parametrize("net", [learned(), nothing()], ids=["learned", "nothing"])
@settings(max_examples=60, deadline=None)
@given(any_scans, st.integers(0, 9))
def test_a_step_is_looked_up_as_the_lists_have_it(net, scans, seed):
    sites = SITES if seed == 0 else shuffled(seed)
    trails = sort(scans)
    previous = previous_of(trails.starts)
    steps = BoundNetwork(net, sites).steps(trails.scans, previous)
    for i in range(len(scans)):
        known, share = market(net, sites, trails.scans, i)
        assert steps.market_known[i] == known
        assert steps.market_share[i] == pytest.approx(share)
        if previous[i] < 0:
            named = ("known", "edge_used", "edge_share", "region_used", "z", "low_h", "support")
            assert not any(getattr(steps, name)[i] for name in named)
            continue
        for name, value in reckoned(net, sites, trails.scans, int(previous[i]), i).items():
            assert getattr(steps, name)[i] == pytest.approx(value, rel=1e-5, abs=1e-6), (name, i)


def test_the_learned_network_covers_every_look_up():
    scans = sort(scans_of([(code(serial=s), HONEST) for s in range(1, 4)]))
    previous = previous_of(scans.starts)
    steps = BoundNetwork(learned(), SITES).steps(scans.scans, previous)
    assert steps.known[previous >= 0].any() and steps.market_known.any()
    assert (steps.support[previous >= 0] > 0).all() and steps.region_used.any()
