from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from tests.world.small import LOTS, SHARED, honest, scans_of, world
from trail.facts import Context
from trail.features import encode
from trail.registry import Registry
from trail.scan import DAY_US, EXPORT_COLUMNS, HOUR_US, OP_DIRECTION, SITE_TIER_OF_OP, Op
from world.__main__ import read_sites, write
from world.legs import tier_of_name
from world.network import from_files, made_up
from world.simulate import Options, ground_of, honest_scans, simulate
from world.tampering import NAMES


def files(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_options_make_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write(simulate(Options(lots=5, natural_share=0.05)), tmp_path / name)
    write(simulate(Options(lots=5, natural_share=0.05, seed=8)), tmp_path / "c")
    a, b, c = (files(tmp_path / name) for name in "abc")
    assert a == b and sorted(a) == [
        "answers.parquet",
        "registry.csv",
        "scans.parquet",
        "sites.csv",
        "world.json",
    ]
    assert a["scans.parquet"] != c["scans.parquet"] and a["sites.csv"] == c["sites.csv"]


def test_another_lot_does_not_move_the_others():
    few, more = world(lots=4).scans, world(lots=5).scans
    lots = set(few["epc_lot"].to_pylist())
    kept = more.filter(pa.array([lot in lots for lot in more["epc_lot"].to_pylist()]))
    assert len(more) > len(few) == len(kept)
    columns = ["epc_code", "event_time", "location_id", "event_type"]
    for name in columns:
        assert kept[name].to_pylist() == few[name].to_pylist()


def test_the_tables_have_the_format_of_exports():
    made = world()
    assert made.scans.column_names == ["event_id", *EXPORT_COLUMNS]
    assert made.scans["event_id"].to_pylist() == list(range(1, len(made.scans) + 1))
    times = made.scans["event_time"].to_pylist()
    assert times == sorted(times) and len(times[0]) == 19
    assert made.sites.column_names[:3] == ["seq", "location_id", "scan_location"]
    assert [
        tier_of_name(t) for t in made.sites["tier"].to_pylist()
    ] == made.network.sites.tier.tolist()
    code = made.scans["epc_code"][0].as_py().split(".")
    assert int(code[5]) == made.scans["epc_serial"][0].as_py()
    assert int(code[1]) in made.registry["epc_company"].to_pylist()
    assert not honest()[0].codes.fault.any()


@pytest.fixture(scope="module")
def physical():
    options = Options(lots=60, natural_share=0.0).checked()
    ground = ground_of(options)
    return ground, honest_scans(ground, 60)


def test_honest_goods_go_down_the_chain_and_take_their_time(physical):
    ground, scans = physical
    sites = ground.network.sites
    assert (SITE_TIER_OF_OP[scans.op] == sites.tier[scans.site]).all()
    order = np.lexsort((scans.time_us, scans.epc))
    epc, site, op, time = (c[order] for c in (scans.epc, scans.site, scans.op, scans.time_us))
    leg = (epc[1:] == epc[:-1]) & (site[1:] != site[:-1]) & (OP_DIRECTION[op[:-1]] == -1)
    leg &= OP_DIRECTION[op[1:]] == 1
    hours = np.diff(time)[leg] / HOUR_US
    km = sites.distance_km(site[:-1][leg], site[1:][leg])
    assert (hours > 0.25).all() and (km / hours < 110).all()
    assert (np.diff(time)[epc[1:] == epc[:-1]] > 0).all()


def test_parameters_come_out(physical):
    _, scans = physical
    items = len(scans.codes)
    assert items / 60 == pytest.approx(300 * np.exp(0.08), rel=0.15)
    has = np.zeros((items, 10), dtype=bool)
    has[scans.epc, scans.op] = True
    whole = has[:, Op.SALE] & has[:, Op.AGGREGATION]
    missed = 1 - has[whole][:, Op.HUB_OUT : Op.SALE].mean()
    assert missed == pytest.approx(0.05 + 0.02, abs=0.012)
    lots, lot = np.unique(scans.codes.lot_key, return_inverse=True)
    commissioned = np.bincount(lot, weights=has[:, Op.AGGREGATION]) / np.bincount(lot)
    assert set(np.unique(commissioned)) == {0.0, 1.0}
    assert 0 < (commissioned == 0).mean() < 0.17 and len(lots) == 60


def test_stays_have_the_means_of_the_table():
    options = Options(lots=60, natural_share=0.0).checked()
    ground = replace(ground_of(options), site_factor=np.ones(78))
    rng = np.random.default_rng(1)
    monday = np.full(4000, ground.start_s + 9 * 3600)
    site = np.zeros(4000, dtype=np.int32)
    means = [
        (ground.leave(site, monday, op, rng) - monday).mean() / 86400
        for op in (Op.WMS_OUT, Op.HUB_OUT, Op.WHOLESALE_OUT, Op.RETAIL_OUT, Op.SALE)
    ]
    assert means == pytest.approx([3, 2, 5, 4, 6], rel=0.12)


def test_boxes_and_pallets_are_read_together(physical):
    _, scans = physical
    sizes = {}
    for op in (Op.WMS_IN, Op.RETAIL_IN):
        mine = scans.op == op
        _, count = np.unique(
            np.stack([scans.lot[mine], scans.site[mine], scans.time_us[mine]]),
            axis=1,
            return_counts=True,
        )
        sizes[op] = np.median(count)
    assert 42 <= sizes[Op.WMS_IN] <= 48 and 9 <= sizes[Op.RETAIL_IN] <= 12


def test_commissioning_runs_in_serial_order_within_minutes(physical):
    _, scans = physical
    first = scans.take(scans.op == Op.AGGREGATION)
    skipped = []
    for lot in np.unique(first.lot)[:20]:
        mine = first.take(first.lot == lot)
        serial = mine.codes.serial[mine.epc]
        order = np.argsort(serial)
        time_s = mine.time_us[order] / 1e6
        assert np.ptp(time_s) < 3600 and (np.diff(time_s) > -8).all()
        skipped.append(np.diff(serial[order]) - 1)
    assert 0.002 < np.concatenate(skipped).mean() < 0.03


def test_hidden_tampering_has_its_share_and_its_answers():
    made = simulate(Options(lots=60, natural_share=0.02))
    answers = made.answers.filter(made.answers["y_cause"])
    share = len(answers["epc_code"].unique()) / len(made.scans["epc_code"].unique())
    assert share == pytest.approx(0.02, rel=0.35)
    at = np.asarray(answers["event_id"]) - 1
    assert made.scans["epc_code"].take(pa.array(at)).to_pylist() == answers["epc_code"].to_pylist()
    assert {"fake_unknown_lot", "order_after_sale"} <= set(answers["subtype"].to_pylist())
    assert len(simulate(Options(lots=4, natural_share=0.0)).answers) == 0


def test_held_out_worlds_differ_where_they_say():
    base = world(lots=12)
    for held in ("W1", "W2", "W3", "W4", "W5", "W6"):
        assert not world(lots=12, held_out=held).scans.equals(base.scans), held
    assert world(lots=12, held_out="W3").network.sites.names != base.network.sites.names
    assert len(world(lots=12, held_out="W5").network.factories) == 5
    whole = simulate(Options(lots=40, natural_share=0.05, held_out="W8"))
    kept = whole.answers.filter(whole.answers["y_cause"])
    assert set(kept["subtype"].to_pylist()) <= {
        s for s in NAMES if s not in ("loc_strays", "jump_before_pallet", "dup_second_sale")
    }
    few = simulate(
        Options(lots=20, natural_share=0.05, held_out="W7", natural_subtypes=("jump_fast",))
    )
    assert set(few.answers["subtype"].to_pylist()) == {"jump_fast"}


def test_uniform_legs_do_not_depend_on_distance():
    def correlation(held_out):
        ground = ground_of(Options(held_out=held_out).checked())
        hubs = np.flatnonzero(ground.network.sites.tier == 2).astype(np.int32)
        a, b = np.repeat(hubs, 5), np.tile(hubs, 5)
        a, b = np.repeat(a[a != b], 100), np.repeat(b[a != b], 100)
        hours = ground.leg_s(a, b, np.random.default_rng(0)) / 3600
        return np.corrcoef(hours, ground.network.sites.distance_km(a, b))[0, 1], hours

    assert correlation(None)[0] > 0.35
    r, hours = correlation("W4")
    assert abs(r) < 0.08 and hours.min() > 0.4 and hours.max() <= 10


def test_in_w6_a_site_closes_and_stays_grow():
    options = Options(lots=150, natural_share=0.0, held_out="W6").checked()
    ground = ground_of(options)
    scans = honest_scans(ground, 150)
    into = scans.op == Op.RETAIL_IN
    closed = scans.take(into & (scans.site == ground.closed))
    late_us = (ground.change_s + 4 * 86400) * 1e6
    sold_later = (scans.time_us[into] > late_us).sum()
    assert len(closed) > 20 and sold_later > 100
    returned = 0.02 * len(closed)
    assert (closed.time_us > late_us).sum() <= returned + 2


@pytest.mark.parametrize("held_out", [None, "W1", "W2", "W3", "W5", "W6", "W8"])
def test_no_honest_scan_has_a_reason_that_outranks_the_model(held_out):
    made = world(held_out=held_out)
    registry = Registry.of(*(made.registry[c].to_pylist() for c in made.registry.column_names))
    scans = scans_of(made.scans, made.network.sites)
    found = encode(scans, Context(made.network.sites, None, registry)).findings
    assert found.reason.any() and not found.hard.any()


def test_noise_times_two_and_a_half_misses_more_scans():
    per_item = [
        len(w.scans) / len(w.scans["epc_code"].unique()) for w in (world(), world(held_out="W2"))
    ]
    assert per_item[1] < per_item[0] - 0.5


@pytest.mark.skipif(not SHARED.exists(), reason="no installation files here")
def test_the_installation_profile_looks_like_the_installation():
    import pyarrow.csv as pc

    sites = read_sites(SHARED / "installation" / "sites.csv")
    legs = pc.read_csv(SHARED / "installation" / "leg_statistics.csv")
    network = from_files(sites, legs)
    made = simulate(Options(profile="installation", lots=6, natural_share=0.0, network=network))
    scans = scans_of(made.scans, network.sites)
    assert len(scans.codes) == 6 * 2000
    out = scans.take(scans.op == Op.WHOLESALE_OUT)
    _, count = np.unique(np.stack([out.lot, out.time_us]), axis=1, return_counts=True)
    assert 90 <= np.median(np.repeat(count, count)) <= 200
    order = np.lexsort((scans.time_us, scans.epc))
    epc, op, time = scans.epc[order], scans.op[order], scans.time_us[order]
    stay = (epc[1:] == epc[:-1]) & (op[1:] == Op.WHOLESALE_OUT) & (op[:-1] == Op.WHOLESALE_IN)
    assert 15 < np.diff(time)[stay].mean() / DAY_US < 60
    leg = (epc[1:] == epc[:-1]) & (op[1:] == Op.HUB_IN) & (op[:-1] == Op.WMS_OUT)
    hours = np.diff(time)[leg] / HOUR_US
    assert np.quantile(hours, 0.02) > 0.7 and np.quantile(hours, 0.98) < 10.5


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"profile": "hrad"}, "easy, hard, installation"),
        ({"dwell": "medium"}, "short, long"),
        ({"held_out": "W9"}, "W1"),
        ({"held_out": "W7"}, "--subtype"),
        ({"scans": 5}, "100 or more"),
        ({"seed": -1}, "0 or more"),
        ({"days": 1}, "2 or more"),
        ({"natural_share": 0.9}, "0 to 0.2"),
        ({"scans": 10**9}, "fewer"),
    ],
)
def test_impossible_options_say_what_would_do(wrong, words):
    with pytest.raises(ValueError, match=words) as error:
        Options(**wrong).checked()
    assert str(next(iter(wrong.values()))) in str(error.value)


def test_the_number_of_scans_is_about_what_was_asked():
    made = simulate(Options(scans=90_000, natural_share=0.0))
    assert len(made.scans) == pytest.approx(90_000, rel=0.2)
    assert LOTS < Options(scans=600_000).lot_count() < 400
    assert made_up().registry.column_names == ["epc_company", "epc_product"]
