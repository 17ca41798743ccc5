import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import mode

from tests.world.small import honest, tampered, trails
from trail.epc import parse
from trail.scan import (
    DAY_US,
    HOUR_US,
    OP_DIRECTION,
    SECOND_US,
    SITE_TIER_OF_OP,
    Anomaly,
    Op,
    Scans,
)
from world.estimate import RARE, estimate, hour_of_week
from world.inject import candidates, lot_views, sorted_order
from world.observe import Noise
from world.tampering import NAMES, SUBTYPES, read_twice, tamper

ITEM_TYPES = [s for s in SUBTYPES if s.scope != "box"]


def km(scans, a, b):
    _, sites = honest()
    return float(sites.distance_km(scans.site[a : a + 1], scans.site[b : b + 1])[0])


@pytest.mark.parametrize("subtype", SUBTYPES, ids=NAMES)
def test_every_subtype_happens_and_its_truth_is_consistent(subtype):
    after = tampered(subtype.name)
    truth, scans = after.truth, after.scans
    place = NAMES.index(subtype.name)
    tampered_epcs = np.unique(scans.epc[truth.cause])
    assert len(tampered_epcs) >= 10
    assert set(truth.subtype[truth.cause]) == {place}
    assert set(truth.anomaly[truth.cause]) == {subtype.anomaly}
    assert (truth.anomaly[~truth.cause] == -1).all()
    assert not truth.evidence[~truth.cause].any()
    assert np.bincount(scans.epc[truth.evidence]).max(initial=0) <= 1
    assert (truth.control[truth.cause] == subtype.control).all()
    assert (truth.grade[truth.cause] == subtype.grade).all()
    told = set(scans.epc[truth.evidence].tolist())
    if subtype.anomaly == Anomaly.JUMP and not subtype.control:
        # To an item of a box that was not read as it left, it happens, and nobody can know.
        assert len(told) > 0.9 * len(tampered_epcs) and told <= set(tampered_epcs.tolist())
    elif not subtype.control and subtype.name != "loc_strays":
        assert told == set(tampered_epcs.tolist())
    elif subtype.name not in ("dup_whole_box", "loc_strays"):
        assert not told


@pytest.mark.parametrize("subtype", ITEM_TYPES, ids=lambda s: s.name)
def test_single_items_come_out_at_about_their_share(subtype):
    after = tampered(subtype.name)
    share = len(np.unique(after.scans.epc[after.truth.cause])) / len(honest()[0].codes)
    assert 0.004 < share < 0.027
    if subtype.name not in ("fake_in_quota", "fake_never_commissioned", "fake_commissioned_late"):
        assert share > 0.015


def test_honest_scans_stay_as_they_are_and_keep_their_rows():
    before, _ = honest()
    after = tampered().scans
    truth = tampered().truth
    kept = (after.row >= 0) & ~truth.synthetic
    rows = after.row[kept]
    assert (np.diff(rows) > 0).all() and len(after) == len(truth)
    for name in ("epc", "site", "op", "time_us"):
        assert (getattr(after, name)[kept] == getattr(before, name)[rows]).all(), name
    assert (after.row[~kept & ~truth.synthetic] == -1).all()
    assert truth.cause[truth.synthetic].all()
    assert not truth.blur[truth.subtype < 0].any()


def test_each_epc_is_tampered_with_at_most_once():
    scans, truth = tampered().scans, tampered().truth
    there = truth.subtype >= 0
    pairs = np.unique(np.stack([scans.epc[there], truth.subtype[there]]), axis=1)
    assert len(np.unique(pairs[0])) == pairs.shape[1]


def test_the_same_seed_repeats_and_another_differs():
    scans, sites = honest()
    one, two, other = (tamper(scans, sites, share=0.01, seed=s) for s in (1, 1, 2))
    assert (one.scans.time_us == two.scans.time_us).all()
    assert one.scans.codes.text.equals(two.scans.codes.text)
    assert (one.truth.subtype == two.truth.subtype).all()
    assert not one.scans.codes.text.equals(other.scans.codes.text)
    assert {NAMES[i] for i in set(one.truth.subtype.tolist()) - {-1}}.isdisjoint(
        s.name for s in SUBTYPES if s.natural_only
    )


def test_the_cases_of_a_lot_do_not_depend_on_other_lots_or_subtypes():
    scans, sites = honest()
    order = sorted_order(scans)
    seen = estimate(scans, sites, order)
    rates = np.full(len(SUBTYPES), 0.02)
    lots = [lot for _, lot in lot_views(scans, order)]

    def cases(which, lot):
        return [
            (c.subtype, c.members, sorted(c.plan.changed()), c.chance)
            for c in candidates(lot, seen, which, rates, 9, "mix")
        ]

    alone = scans.take(scans.lot == lots[3].key)
    ((_, only),) = lot_views(alone, sorted_order(alone))
    everything = range(len(SUBTYPES))
    assert cases(everything, only) == cases(everything, lots[3]) != []
    fewer = [i for i in everything if i != 4]
    assert cases(fewer, lots[3]) == [c for c in cases(everything, lots[3]) if c[0] != 4]


def test_the_order_of_rows_does_not_matter():
    scans, sites = honest()
    shuffled = scans.take(np.random.default_rng(0).permutation(len(scans)))
    one, two = (tamper(s, sites, share=0.01, seed=1) for s in (scans, shuffled))

    def content(made):
        text = np.array(made.scans.codes.text.to_pylist(), dtype=object)[made.scans.epc]
        columns = (text, made.scans.time_us, made.scans.site, made.scans.op, made.truth.subtype)
        return sorted(zip(*(c.tolist() for c in columns), strict=True))

    assert content(one) == content(two)


@pytest.mark.parametrize("name", [s.name for s in SUBTYPES if s.anomaly == Anomaly.FAKE])
def test_a_fake_is_wrong_in_all_its_scans(name):
    after = tampered(name)
    scans, truth = after.scans, after.truth
    before, _ = honest()
    genuine = set(before.codes.text.to_pylist())
    assert len(set(scans.codes.text.to_pylist())) == len(scans.codes)
    for mine in trails(after):
        assert truth.cause[mine].all()
        assert scans.codes.text[int(scans.epc[mine[0]])].as_py() not in genuine
        if name != "fake_in_quota":
            assert truth.evidence[mine[0]] and (scans.row[mine] == -1).all()
    fakes = np.unique(scans.epc[truth.cause])
    codes = scans.codes
    if name == "fake_malformed":
        assert codes.fault[fakes].all()
    else:
        assert not codes.fault[fakes].any()
    lots = dict.fromkeys(before.codes.lot_key.tolist())
    in_lots = np.array([key in lots for key in codes.lot_key[fakes].tolist()])
    assert in_lots.all() == (
        name not in ("fake_malformed", "fake_unknown_product", "fake_unknown_lot")
    )


def test_serials_of_fakes_lie_where_their_subtype_says():
    before, _ = honest()
    for name, inside in (
        ("fake_serial_beyond", False),
        ("fake_never_commissioned", True),
        ("fake_commissioned_late", True),
        ("fake_in_quota", True),
    ):
        scans, truth = tampered(name).scans, tampered(name).truth
        for fake in np.unique(scans.epc[truth.cause]):
            lot = before.codes.lot_key == scans.codes.lot_key[fake]
            serials = before.codes.serial[lot]
            serial = scans.codes.serial[fake]
            assert (serials.min() < serial < serials.max()) == inside
            assert serial not in serials


def test_a_late_fake_is_commissioned_hours_after_the_run_and_then_joins_a_box():
    after = tampered("fake_commissioned_late")
    before, _ = honest()
    for mine in trails(after):
        assert after.scans.op[mine[0]] == Op.AGGREGATION
        run = before.time_us[(before.lot == after.scans.lot[mine[0]]) & (before.op == 0)]
        assert after.scans.time_us[mine[0]] > run.min() + 1.5 * HOUR_US
        boxed = mine[after.scans.op[mine] == Op.WMS_OUT]
        mates = (before.time_us == after.scans.time_us[boxed[0]]).sum()
        assert mates >= 5


def test_a_clone_leaves_the_genuine_trail_whole():
    before, _ = honest()
    for name in ("dup_far_at_once", "dup_far_in_hours", "dup_at_shop_already", "dup_second_sale"):
        after = tampered(name)
        assert (after.scans.row >= 0).sum() == len(before)
        assert (after.truth.cause == (after.scans.row == -1)).all()


def test_clones_are_where_and_when_their_subtype_says():
    for name, most_us in (("dup_far_at_once", 10), ("dup_far_in_hours", 180)):
        after = tampered(name)
        for mine in trails(after):
            at = int(np.flatnonzero(after.truth.cause[mine])[0])
            same = [
                i for i in mine if after.scans.op[i] == after.scans.op[mine[at]] and i != mine[at]
            ]
            gap = min(abs(after.scans.time_us[i] - after.scans.time_us[mine[at]]) for i in same)
            assert gap <= most_us * 60 * SECOND_US + SECOND_US
            assert any(km(after.scans, mine[at], i) >= 99 for i in same)
    after = tampered("dup_at_shop_already")
    for mine in trails(after):
        clone = mine[after.truth.cause[mine]]
        leaves = mine[(after.scans.op[mine] == Op.WHOLESALE_OUT) & ~after.truth.cause[mine]]
        assert after.scans.time_us[clone[0]] < after.scans.time_us[leaves].max()
        later = [i for i in mine if after.scans.time_us[i] > after.scans.time_us[clone[0]]]
        assert all(after.truth.blur[i] & (1 << Anomaly.DUP) for i in later if i not in clone)
    after = tampered("dup_second_sale")
    for mine in trails(after):
        assert (after.scans.op[mine[-2:]] == Op.SALE).all() and after.truth.evidence[mine[-1]]


def test_a_cloned_box_is_told_only_when_its_tracks_conflict():
    after = tampered("dup_whole_box")
    told = unread = 0
    for mine in trails(after):
        clone = mine[after.truth.cause[mine]]
        genuine = mine[~after.truth.cause[mine]]
        left = after.scans.time_us[genuine][after.scans.op[genuine] == Op.WHOLESALE_OUT]
        arrived = after.scans.time_us[genuine][after.scans.op[genuine] == Op.RETAIL_IN]
        evidence = mine[after.truth.evidence[mine]]
        if after.scans.op[clone[0]] != Op.RETAIL_IN:  # a reader missed it
            unread += 1
            continue
        if not len(arrived):
            continue
        assert left.min() < after.scans.time_us[clone[0]] < arrived.min()
        for i in evidence:
            assert after.scans.time_us[i] >= arrived.min()
            told += 1
    assert told > 5 * unread > 0


def test_goods_at_a_wrong_place_stay_wrong():
    _, sites = honest()
    for name in ("loc_unused_edge", "loc_wrong_market", "loc_strays", "loc_box_diverted"):
        after = tampered(name)
        for mine in trails(after):
            cause = after.truth.cause[mine]
            first = int(np.argmax(cause))
            assert cause[first:].all() and first > 0
            step = after.scans.op[mine[first]] - after.scans.op[mine[first - 1]]
            assert step >= 1  # more where a reader missed it
            assert step > 1 or OP_DIRECTION[after.scans.op[mine[first - 1]]] == -1
    after = tampered("loc_tier_mismatch")
    wrong = after.truth.cause
    assert (SITE_TIER_OF_OP[after.scans.op[wrong]] != sites.tier[after.scans.site[wrong]]).all()
    rest = ~wrong
    assert (SITE_TIER_OF_OP[after.scans.op[rest]] == sites.tier[after.scans.site[rest]]).all()


def test_markets_and_edges_are_crossed_as_the_subtypes_say():
    scans, sites = honest()
    seen = estimate(scans, sites, sorted_order(scans))
    for name in ("loc_unused_edge", "loc_wrong_market", "loc_strays"):
        after = tampered(name)
        for mine in trails(after):
            first = int(np.argmax(after.truth.cause[mine]))
            a, b = after.scans.site[mine[first - 1]], after.scans.site[mine[first]]
            product = int(after.scans.codes.product[after.scans.epc[mine[0]]])
            inside = bool(seen.in_market(product, np.array([b]))[0])
            assert (seen.used[a, b] > 0) == (name != "loc_unused_edge")
            if name != "loc_unused_edge":
                assert inside == (name == "loc_strays")


def test_a_stray_left_with_its_box_and_arrives_without_it():
    scans, _ = honest()
    after = tampered("loc_strays")
    for mine in trails(after):
        first = int(np.argmax(after.truth.cause[mine]))
        came = mine[first]
        before = mine[:first][after.scans.op[mine[:first]] == after.scans.op[mine[first - 1]]]
        left = before[-2] if len(before) > 1 else before[-1]  # read a second time as it left
        with_it = scans.time_us == after.scans.time_us[left]
        assert (with_it & (scans.site == after.scans.site[left])).sum() >= 4
        there = (after.scans.time_us == after.scans.time_us[came]) & (
            after.scans.site == after.scans.site[came]
        )
        assert there.sum() <= 3


def test_a_stray_that_comes_before_its_box_may_also_be_a_jump():
    scans, _ = honest()
    after = tampered("loc_strays")
    early = late = 0
    for mine in trails(after):
        first = int(np.argmax(after.truth.cause[mine]))
        left, came = mine[first - 1], mine[first]
        if after.scans.op[came] != after.scans.op[left] + 1:
            continue  # a reader missed where it came
        box = scans.epc[scans.time_us == after.scans.time_us[left]]
        arrivals = np.isin(scans.epc, box) & (scans.op == after.scans.op[came])
        box_came = mode(scans.time_us[arrivals]).mode
        if abs(int(box_came - after.scans.time_us[came])) < HOUR_US:
            continue  # within what clocks differ by
        before = after.scans.time_us[came] < box_came
        assert bool(after.truth.blur[came] & (1 << Anomaly.JUMP)) == before
        assert not after.truth.blur[left]
        early, late = early + before, late + (not before)
    assert early > 5 and late > 5


def test_goods_go_astray_where_such_goods_usually_go():
    scans, sites = honest()
    seen = estimate(scans, sites, sorted_order(scans))
    for name in ("loc_strays", "loc_box_diverted"):
        after = tampered(name)
        lots = []
        for mine in trails(after):
            first = int(np.argmax(after.truth.cause[mine]))
            start, end = (int(after.scans.site[i]) for i in mine[first - 1 : first + 1])
            if after.scans.op[mine[first]] != after.scans.op[mine[first - 1]] + 1:
                continue  # a reader missed where it left
            product = int(after.scans.codes.product[after.scans.epc[mine[0]]])
            often = seen.shipped.get((product, start), np.empty(0))
            lawful = seen.usual_next(product, start, int(sites.tier[end]))
            assert end in lawful
            arrived = (scans.epc == after.scans.epc[mine[0]]) & (
                scans.op == after.scans.op[mine[first]]
            )
            others = set(lawful) - set(scans.site[arrived])
            lots.append(((often == end).sum(), np.mean([(often == o).sum() for o in others])))
        went, mean = np.array(lots).T
        # More often where more lots go than a draw among sites; a handful of boxes says too little.
        assert name == "loc_box_diverted" or went.mean() > mean.mean()


def test_inversions_are_known_at_their_second_scan():
    scans, sites = honest()
    seen = estimate(scans, sites, sorted_order(scans))
    names = ("order_swapped", "order_before_leaving", "order_left_before_arrival")
    cases = [(name, scope) for name in names for scope in ("item", "box")]
    for name, scope in [*cases, ("order_just_before_leaving", "item")]:
        after = tampered(name, scope)
        for mine in trails(after):
            cause = mine[after.truth.cause[mine]]
            assert len(cause) == 2
            assert after.truth.evidence[cause[1]] and not after.truth.evidence[cause[0]]
            ops = after.scans.op[cause]
            if name in ("order_swapped", "order_left_before_arrival"):
                assert after.scans.site[cause[0]] == after.scans.site[cause[1]]
                assert ops[0] == ops[1] + 1
            else:
                gap = after.scans.time_us[cause[1]] - after.scans.time_us[cause[0]]
                least, most = (1, 6) if name == "order_before_leaving" else (1 / 6, 1)
                assert least * HOUR_US <= gap
                moved = after.scans.op[cause[after.truth.synthetic[cause]]][0]
                between = np.arange(
                    after.scans.time_us[cause[0]], after.scans.time_us[cause[1]], HOUR_US
                )
                open_then = seen.hours[moved] > RARE * seen.hours[moved].sum()
                assert open_then[hour_of_week(between)].sum() <= most + 1
                assert ops[0] == ops[1] + 1


def test_a_second_inbound_comes_without_an_outbound_and_nothing_follows_a_sale():
    after = tampered("order_second_inbound")
    for mine in trails(after):
        at = int(np.argmax(after.truth.cause[mine]))
        here = mine[at]
        before = [i for i in mine[:at] if after.scans.site[i] == after.scans.site[here]]
        assert after.scans.op[before[-1]] == after.scans.op[here]
    after = tampered("order_after_sale")
    for mine in trails(after):
        assert after.scans.op[mine[-1]] == Op.RETAIL_OUT and after.truth.evidence[mine[-1]]
        assert after.scans.op[mine[-2]] == Op.SALE


def test_jumps_are_as_fast_as_their_subtype_says():
    scans, sites = honest()
    seen = estimate(scans, sites, sorted_order(scans))
    unread = 0
    bounds = {"jump_minute": (0, 125), "jump_fast": (0, 3600 * 5)}
    items = ("jump_minute", "jump_fast", "jump_route_share", "jump_before_pallet")
    for name, scope in [*((name, "item") for name in items), ("jump_minute", "box")]:
        after = tampered(name, scope)
        for mine in trails(after):
            cause = np.flatnonzero(after.truth.cause[mine])
            assert len(cause) == 1
            into, out = mine[cause[0]], mine[cause[0] - 1]
            left = cause[0] > 0 and after.scans.op[into] == after.scans.op[out] + 1
            assert after.truth.evidence[into] == left
            if not left:  # the reader missed it as it left
                unread += 1
                continue
            seconds = (after.scans.time_us[into] - after.scans.time_us[out]) / SECOND_US
            if name in bounds:
                assert bounds[name][0] <= seconds <= bounds[name][1]
            if name == "jump_fast":
                assert 149 <= km(after.scans, into, out) / (seconds / 3600) <= 301
            if name == "jump_route_share":
                typical = seen.typical_h[after.scans.site[out], after.scans.site[into]]
                assert 0.34 <= seconds / 3600 / typical <= 0.56
            if name == "jump_before_pallet":
                was = scans.time_us[after.scans.row[into]]
                assert 0.99 <= (was - after.scans.time_us[into]) / HOUR_US <= 5.01
    assert unread > 0


def test_a_jump_that_clocks_hide_is_not_known():
    scans, sites = honest()
    typical_h = estimate(scans, sites, sorted_order(scans)).typical_h
    after = tampered("jump_minute", "box", noise=Noise(skew_sd_s=300.0))
    hidden = 0
    for mine in trails(after):
        cause = np.flatnonzero(after.truth.cause[mine])
        assert len(cause) == 1
        into, out = mine[cause[0]], mine[cause[0] - 1]
        if after.truth.evidence[into]:
            hours = (after.scans.time_us[into] - after.scans.time_us[out]) / HOUR_US
            usual_h = typical_h[after.scans.site[out], after.scans.site[into]]
            assert cause[0] > 0 and 0 <= hours <= 0.6 * usual_h
        else:
            hidden += 1
        # Where the departure is recorded after the arrival, its order is wrong, and no surprise.
        left = mine[after.scans.op[mine] == after.scans.op[into] - 1]
        assert all(after.truth.blur[i] & (1 << Anomaly.ORDER) for i in left[:1])
    assert hidden > 0


def test_whole_boxes_are_tampered_with_together():
    scans, _ = honest()
    for name in ("order_left_before_arrival", "jump_route_share", "jump_plausible"):
        after = tampered(name, scope="box")
        moved = after.truth.synthetic & (after.scans.row >= 0)
        reading = np.stack([after.scans.lot, after.scans.site, after.scans.time_us])[:, moved]
        _, count = np.unique(reading, axis=1, return_counts=True)
        assert np.median(count) >= 5
    assert not tampered("loc_strays", scope="box").truth.cause.any()
    mixed = tampered("order_second_inbound", scope="mix", share=0.1)
    moved = mixed.truth.synthetic
    reading = np.stack([mixed.scans.lot, mixed.scans.site, mixed.scans.time_us])[:, moved]
    _, count = np.unique(reading, axis=1, return_counts=True)
    assert count.max() >= 5 and np.median(count) == 1 and len(scans)


def test_added_scans_are_in_whole_seconds_and_only_unseen_times_get_noise():
    noisy = tampered("dup_at_shop_already", noise=Noise(skew_sd_s=300.0))
    clean = tampered("dup_at_shop_already")
    assert (noisy.scans.time_us % SECOND_US == 0).all()
    moved = noisy.scans.time_us != clean.scans.time_us
    assert moved.sum() > 20 and noisy.truth.synthetic[moved].all()
    riders = [
        tampered("fake_serial_beyond", noise=n).scans.time_us
        for n in (Noise(skew_sd_s=300.0), Noise(skew_sd_s=0.0, skew_bad_share=0.0))
    ]
    last = tampered("fake_serial_beyond").scans.op != Op.SALE
    assert (riders[0][last] == riders[1][last]).all()


def test_bad_arguments_say_what_would_do():
    scans, sites = honest()
    with pytest.raises(ValueError, match=r"0\.5.*0 to 0\.15"):
        tamper(scans, sites, share=0.5, seed=1)
    with pytest.raises(ValueError, match=r"'pallet'.*item, box, mix"):
        tamper(scans, sites, share=0.01, seed=1, scope="pallet")
    with pytest.raises(ValueError, match=r"'fake_moon'.*fake_malformed"):
        tamper(scans, sites, share=0.01, seed=1, subtypes=("fake_moon",))


def test_sparse_and_empty_scans_get_none():
    _, sites = honest()
    few = pa.array(["001.8804823.1293291.010004.20250701.000004002"])
    zero, two = np.zeros(2, np.int32), np.array([0, 1], np.int8)
    scans = Scans(zero, zero, two, np.array([0, DAY_US]), np.arange(2), parse(few))
    for given in (scans, scans.take(np.zeros(0, np.int64))):
        made = tamper(given, sites, share=0.1, seed=1)
        assert len(made.scans) == len(given) and not made.truth.cause.any()


def test_items_of_a_box_are_sold_after_times_of_their_own_that_are_usual():
    scans, sites = honest()
    seen = estimate(scans, sites, sorted_order(scans))
    after = tampered("loc_box_diverted")
    hours = []
    for mine in trails(after):
        op = after.scans.op[mine]
        sold, shelf = mine[op == Op.SALE], mine[op == Op.RETAIL_OUT]
        if len(sold) and len(shelf) and after.truth.cause[sold[0]]:
            hours.append((after.scans.time_us[sold[0]] - after.scans.time_us[shelf[0]]) / HOUR_US)
    usual = np.quantile(seen.stay_h[Op.SALE], [0.25, 0.75])
    found = np.quantile(hours, [0.25, 0.75])
    assert len(hours) > 100 and len(np.unique(hours)) > 0.9 * len(hours)
    assert (np.abs(found - usual) < 0.35 * usual).all()


def test_added_scans_are_read_twice_as_often_as_others():
    scans, sites = honest()
    usual = read_twice(scans)
    assert 0.5 * 0.015 < usual < 1.5 * 0.015  # the profile's share
    after = tamper(scans, sites, share=0.1, seed=3, subtypes=("loc_box_diverted",))
    added = after.truth.synthetic & (after.scans.row < 0)
    order = np.flatnonzero(added)[np.lexsort((after.scans.time_us[added], after.scans.epc[added]))]
    epc, site, op = after.scans.epc[order], after.scans.site[order], after.scans.op[order]
    again = (np.diff(epc) == 0) & (np.diff(site) == 0) & (np.diff(op) == 0)
    gap_s = np.diff(after.scans.time_us[order])[again] / SECOND_US
    assert 0.5 * usual < again.sum() / len(order) < 2 * usual
    assert (gap_s > 0).all() and (gap_s <= 600).all()


def test_a_box_takes_along_who_was_missed_as_it_left_and_keeps_second_readings():
    after = tampered("loc_box_diverted")
    missed = twice = 0
    for mine in trails(after):
        first = int(np.argmax(after.truth.cause[mine]))
        op, before = after.scans.op[mine], after.scans.op[mine[first - 1]]
        missed += int(op[first] - before > 1)
        twice += int((op[:first] == before).sum() > 1)
    assert missed > 2 and twice > 0
