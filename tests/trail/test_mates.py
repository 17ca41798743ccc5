"""Mates against a slow, obvious reckoning with loops."""

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trail.small import HONEST, any_scans, code, scans_of
from trail import mates as room
from trail.facts import previous_of
from trail.mates import mates, merge, table_of
from trail.scan import Op
from trail.trails import sort


def reckoned(scans, previous, i):
    """What `Mates` says of scan i, by looking at every scan of its lot up to its time."""
    n = len(scans)
    lot, now = scans.lot, scans.time_us[i]
    serial = scans.codes.serial[scans.epc]

    def group(a):
        return (lot[a], scans.time_us[a], scans.site[a], scans.op[a])

    seen = [j for j in range(n) if lot[j] == lot[i] and scans.time_us[j] <= now]
    born = [j for j in seen if scans.op[j] == Op.AGGREGATION]
    found = {
        "group": sum(group(j) == group(i) for j in range(n)),
        "lot_commissioned": len(born),
        "serial_low": min((int(serial[j]) for j in born), default=2**31),
        "serial_high": max((int(serial[j]) for j in born), default=-1),
        "lot_at_op": sum(scans.op[j] == scans.op[i] for j in seen),
        "lot_at_site": sum(scans.site[j] == scans.site[i] for j in seen),
        "group_before": 0,
        "together": 0,
        "departed": 0,
        "departed_here": 0,
        "lag_s": 0.0,
    }
    if previous[i] >= 0:
        left = group(previous[i])
        moves = [j for j in range(n) if previous[j] >= 0 and group(previous[j]) == left]
        gone = [j for j in moves if scans.time_us[j] <= now]
        found["group_before"] = sum(group(j) == left for j in range(n))
        found["together"] = sum(group(j) == group(i) for j in moves)
        found["departed"] = len(gone)
        found["departed_here"] = sum(scans.site[j] == scans.site[i] for j in gone)
        found["lag_s"] = float(now - min(scans.time_us[j] for j in moves)) / 1e6
    return found


@settings(max_examples=150, deadline=None)
@given(any_scans)
def test_counts_agree_with_the_slow_reckoning(scans):
    trails = sort(scans)
    previous = previous_of(trails.starts)
    found = mates(trails.scans, previous)
    for i in range(len(scans)):
        for name, value in reckoned(trails.scans, previous, i).items():
            assert getattr(found, name)[i] == value, (name, i)


@settings(max_examples=80, deadline=None)
@given(any_scans, st.randoms(use_true_random=False))
def test_counters_add_up_in_any_order(scans, random):
    trails = sort(scans)
    previous = previous_of(trails.starts)
    mask = np.array([random.random() < 0.5 for _ in range(len(scans))])
    whole = table_of(trails.scans, previous)
    one = table_of(trails.scans, previous, mask)
    two = table_of(trails.scans, previous, ~mask)
    for merged in (merge(one, two), merge(two, one)):
        for name in ("lot", "time_us", "site", "op", "n", "start", "end", "moved"):
            assert np.array_equal(getattr(merged, name), getattr(whole, name)), name


@settings(max_examples=80, deadline=None)
@given(any_scans)
def test_a_given_table_says_the_same_as_the_scans_themselves(scans):
    trails = sort(scans)
    previous = previous_of(trails.starts)
    own = mates(trails.scans, previous)
    told = mates(trails.scans, previous, table_of(trails.scans, previous))
    for name in own.__slots__:
        assert np.array_equal(getattr(own, name), getattr(told, name)), name


@settings(max_examples=150, deadline=None)
@given(any_scans, st.randoms(use_true_random=False))
def test_scans_looked_up_in_a_table_say_the_same_as_scans_put_into_it(scans, random):
    trails = sort(scans)
    previous = previous_of(trails.starts)
    mask = np.array([random.random() < 0.5 for _ in range(len(scans))])
    table = merge(table_of(trails.scans, previous, mask), table_of(trails.scans, previous, ~mask))
    asked = sort(scans.take(np.isin(scans.epc, [e for e in range(9) if random.random() < 0.5])))
    before = previous_of(asked.starts)
    if not len(asked.scans):
        return
    found = room._found(asked.scans, before, table)
    assert found is not None
    looked_up = room.as_of(found, before)
    put_in = room.as_of(room._put_in(asked.scans, before, table), before)
    for name in looked_up.__slots__:
        assert np.array_equal(getattr(looked_up, name), getattr(put_in, name)), name


@settings(max_examples=150, deadline=None)
@given(any_scans, st.randoms(use_true_random=False))
def test_a_scan_that_a_table_lacks_is_put_in(scans, random):
    trails = sort(scans)
    previous = previous_of(trails.starts)
    some = np.array([random.random() < 0.7 for _ in range(len(scans))])
    part = sort(trails.scans.take(some))
    table = table_of(part.scans, previous_of(part.starts))
    told = mates(trails.scans, previous, table)
    put_in = room.as_of(room._put_in(trails.scans, previous, table), previous)
    for name in told.__slots__:
        assert np.array_equal(getattr(told, name), getattr(put_in, name)), name


def test_lots_so_far_apart_in_time_that_no_key_holds_them_are_put_in():
    scans = scans_of([(code(lot=lot), HONEST) for lot in range(1, 30)])
    apart = replace(scans, time_us=scans.time_us + (scans.epc.astype(np.int64) << 57))
    trails = sort(apart)
    previous = previous_of(trails.starts)
    table = table_of(trails.scans, previous)
    assert room._found(trails.scans, previous, table) is None
    assert (mates(trails.scans, previous, table).lot_commissioned == 1).all()


def test_times_further_apart_than_one_key_holds():
    far = [(op, site, seconds * 100) for op, site, seconds in HONEST]
    scans = scans_of([(code(serial=s), far) for s in (1, 2, 3)])
    trails = sort(scans)
    assert (mates(trails.scans, previous_of(trails.starts)).group == 3).all()
