"""Roads of a lot against a slow, obvious reckoning, and what they are worth knowing for."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trail.small import HONEST, HUB, SITES, code, scans_of
from trail import network
from trail.facts import Context, facts, previous_of
from trail.features import FEATURES, encode
from trail.mates import merge, table_of
from trail.registry import Registry
from trail.roads import LOAD, MOST, roads
from trail.scan import OP_DIRECTION, Op
from trail.trails import sort


def lots(paces: list[float], items: int = 6):
    """One lot for each pace: its goods take so many times as long on each leg."""
    trails = []
    for lot, pace in enumerate(paces):
        now, was, scans = lot * 900.0, 0.0, []
        for op, site, second in HONEST:
            leg = OP_DIRECTION[op] == 1 and op > Op.WMS_IN
            now += (second - was) * (pace if leg else 1.0)
            was = second
            scans.append((op, site, now))
        trails += [(code(lot=lot + 1, serial=s + 1), scans) for s in range(items)]
    return scans_of(trails)


def bound(scans):
    trails = sort(scans)
    known = network.fit(trails.scans, previous_of(trails.starts), SITES)
    return Context(SITES, known, Registry.none()).bound()


CONTEXT = bound(lots([1.0] * 12))


def reckoned(scans, previous, i):
    """Loads of scan i's lot that had arrived before it, each with its pace, one by one."""
    found = {}
    for j in range(len(scans)):
        k = previous[j]
        if k < 0 or scans.lot[j] != scans.lot[i] or scans.time_us[j] >= scans.time_us[i]:
            continue
        step = scans.op[j] == scans.op[k] + 1 and scans.site[j] != scans.site[k]
        if OP_DIRECTION[scans.op[k]] != -1 or not step:
            continue
        load = tuple(int(scans.time_us[x]) for x in (k, j)) + tuple(
            int(column[x]) for x in (k, j) for column in (scans.site, scans.op)
        )
        found.setdefault(load, []).append(j)
    paces = []
    for load, items in found.items():
        j = items[0]
        k = previous[j]
        usual = CONTEXT.network.usual_h(*(c[[x]] for x in (k, j) for c in (scans.site, scans.op)))
        if len(items) >= LOAD and usual[0] > 0:
            hours = (load[1] - load[0]) / 3.6e9
            pace = math.log((hours + 0.05) / (float(usual[0]) + 0.05))
            paces.append(min(max(pace, -MOST), MOST))
    return paces


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([0.01, 0.3, 1.0, 2.5, 90.0]), min_size=1, max_size=4))
def test_roads_agree_with_the_slow_reckoning(paces):
    trails = sort(lots(paces))
    previous = previous_of(trails.starts)
    known = facts(trails.scans, trails.starts, CONTEXT)
    for i in range(0, len(trails.scans), 5):
        paces_seen = reckoned(trails.scans, previous, i)
        assert known.roads.loads[i] == len(paces_seen)
        mean = np.mean(paces_seen) if paces_seen else 0.0
        off = np.mean(np.abs(paces_seen)) if paces_seen else 0.0
        assert known.roads.pace[i] == pytest.approx(mean, abs=2e-6)
        assert known.roads.off[i] == pytest.approx(off, abs=2e-6)


def test_a_lot_whose_loads_never_keep_the_usual_time_is_known_for_it():
    encoded = encode(lots([1.0, 0.3]), CONTEXT)
    scans = encoded.trails.scans
    off = encoded.features[:, FEATURES.index("lot_off_pace")]
    loads = encoded.features[:, FEATURES.index("lot_loads_log")]
    last = scans.op == Op.SALE
    of_lot = sorted(float(np.ptp(off[last & (scans.lot == lot)])) for lot in np.unique(scans.lot))
    assert of_lot == [0.0, 0.0]
    assert off[last].min() < 0.05 and off[last].max() > 0.5
    assert loads[last] == pytest.approx(math.log1p(3))


def test_a_load_does_not_count_for_itself_nor_for_what_came_with_it():
    encoded = encode(lots([0.3]), CONTEXT)
    scans = encoded.trails.scans
    first_arrival = (scans.op == Op.HUB_IN) & (scans.site == HUB)
    assert first_arrival.any()
    assert not encoded.features[first_arrival, FEATURES.index("lot_loads_log")].any()


def test_without_a_network_nothing_is_said():
    encoded = encode(lots([0.3]), Context(SITES, None, Registry.none()))
    for name in ("lot_loads_log", "lot_pace", "lot_off_pace"):
        assert not encoded.features[:, FEATURES.index(name)].any()


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from([0.3, 1.0, 2.5]), min_size=2, max_size=5),
    st.integers(5, 95),
    st.sampled_from([0, 1]),
)
def test_a_lot_asked_about_in_parts_is_told_the_same_bit_for_bit(paces, percent, which):
    scans = lots(paces)
    whole = encode(scans, CONTEXT)
    moment = np.percentile(scans.time_us, percent, method="lower")
    trails = sort(scans)
    new = trails.scans.time_us > moment
    stored = table_of(trails.scans, previous_of(trails.starts), ~new)
    added = table_of(trails.scans, previous_of(trails.starts), new)
    asked = trails.scans.take(trails.scans.epc % 2 == which)
    told = encode(asked, CONTEXT, merge(stored, added))
    rows = np.isin(whole.trails.scans.row, told.trails.scans.row)
    assert np.array_equal(whole.features[rows], told.features)


def test_a_load_that_arrives_before_it_left_is_as_quick_as_can_be():
    """As when an explanation asks whether a box would have been normal at another time."""
    trails = sort(lots([1.0]))
    whole = table_of(trails.scans, previous_of(trails.starts))
    leg = int(np.flatnonzero((whole.moved >= LOAD) & (whole.op[whole.start] == Op.WMS_OUT))[0])
    time_us = whole.time_us.copy()
    time_us[whole.end[leg]] = whole.time_us[whole.start[leg]] - 3_600_000_000
    none = trails.scans.take(np.zeros(len(trails.scans), bool))
    table = merge(replace(whole, time_us=time_us), table_of(none, np.empty(0, np.intp)))
    found = roads(table, np.arange(len(table)), CONTEXT.network)
    assert np.isfinite(found.pace).all() and np.isfinite(found.off).all()
    assert found.off.max() == pytest.approx(MOST)
