"""Traffic of the drift reference: all lots of a span with their past, judged as in serving."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intake.columns import to_scans
from intake.master import write_registry, write_sites
from intake.store import write_scans
from models.bundle import Bundle
from monitoring.calibrate import MOST_DAYS
from monitoring.reference import MONITORED, box_key
from pipelines.traffic import _whole_trails, span, traffic
from tests.models.small_bundles import encoded, small_bundle
from tests.trail.small import DAY, HONEST, HOUR, REGISTRY, SITES, START_US, WHOLESALE, code
from trail.scan import ANOMALIES, DAY_US, EVENT_TYPES, Op

FAST = [*HONEST[:5], (Op.WHOLESALE_IN, WHOLESALE, 4 * DAY + HOUR / 20)]


def part(*times):
    return SimpleNamespace(time_us=np.array(times))


def everything(*times, commissioned=()):
    op = [Op.SALE] * len(times) + [Op.AGGREGATION] * len(commissioned)
    return SimpleNamespace(time_us=np.array([*times, *commissioned]), op=np.array(op))


def test_the_span_is_what_training_has_not_seen_up_to_the_newest_lot():
    scans = everything(1, 5, 30, 40, commissioned=(1, 5, 25))
    assert span(scans, part(1, 5, 10), part(12, 20)) == (11, 26)


def test_without_a_cut_in_time_it_begins_with_the_calibration_part():
    assert span(everything(1, 30, commissioned=(1, 14)), part(1, 30), part(12, 20)) == (12, 15)


def test_only_the_newest_weeks_are_taken():
    days = np.arange(200) * DAY_US
    found = span(everything(commissioned=days), part(0), part(10 * DAY_US))
    assert found == (199 * DAY_US + 1 - MOST_DAYS * DAY_US, 199 * DAY_US + 1)


def test_without_new_lots_or_commissioning_it_reaches_to_the_last_scan():
    assert span(everything(1, 30, 40), part(1, 5), part(12)) == (6, 41)
    assert span(everything(30, 40, commissioned=(1, 3)), part(1, 5), part(12)) == (6, 41)


def test_a_few_clocks_that_are_wrong_do_not_move_it():
    days = np.arange(2000) * DAY_US // 10
    found = span(everything(commissioned=[*days, 10**18]), part(0), part(10 * DAY_US))
    assert 198 * DAY_US < found[1] <= 200 * DAY_US


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=4), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_trails_with_anything_inside_are_kept_whole(trails):
    offsets = np.concatenate([[0], np.cumsum([len(t) for t in trails])])
    rows, kept = _whole_trails(offsets, np.concatenate([np.array(t) for t in trails]))
    alive = [i for i, t in enumerate(trails) if any(t)]
    assert rows.tolist() == [r for i in alive for r in range(offsets[i], offsets[i + 1])]
    assert np.diff(kept).tolist() == [len(trails[i]) for i in alive]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A small bundle, and validated scans of three lots that begin ten days apart."""
    folder = tmp_path_factory.mktemp("traffic")
    bundle = small_bundle(folder / "bundle")
    rows = [
        (code(lot=lot, serial=s), op, site, START_US + (t + 10 * lot * DAY) * 1_000_000)
        for lot in range(3)
        for s in range(1, 31)
        for op, site, t in (FAST if s % 10 == 0 else HONEST)
    ]
    table = pa.table(
        {
            "epc_code": [r[0] for r in rows],
            "location_id": [SITES.ids[r[2]] for r in rows],
            "event_type": [EVENT_TYPES[r[1]] for r in rows],
            "event_time": pa.array([int(r[3]) for r in rows], pa.timestamp("us")),
        }
    )
    read = to_scans(table, SITES)
    (folder / "validated").mkdir()
    write_scans(read, folder / "validated" / "scans.parquet")
    write_sites(SITES, folder / "validated" / "sites.csv")
    write_registry(REGISTRY, folder / "validated" / "registry.csv")
    return folder, bundle, read


def test_traffic_is_all_scans_of_the_span_and_judged_as_the_service_judges(made):
    folder, weights, read = made
    since, until = START_US + 12 * DAY_US, START_US + 25 * DAY_US
    batch = traffic(weights, folder / "validated", read, since, until)
    before = read.scans.take(read.scans.time_us < until)
    bundle = Bundle(weights)
    seen = encoded(before, bundle.network)
    verdicts = bundle.judge(seen.features, seen.offsets, seen.findings)
    inside = seen.trails.scans.time_us >= since
    assert len(batch) == inside.sum() > 0
    np.testing.assert_array_equal(batch.time_us, seen.trails.scans.time_us[inside])
    np.testing.assert_array_equal(batch.site, seen.trails.scans.site[inside])
    expected = box_key(seen.trails.scans.lot, seen.trails.scans.time_us)[inside]
    np.testing.assert_array_equal(batch.box, expected)
    names = [c.name for c in MONITORED]
    for k, anomaly in enumerate(ANOMALIES):
        shown = batch.columns[:, names.index(f"p_{anomaly}")]
        np.testing.assert_allclose(shown, verdicts.model[inside, k], atol=1e-5)
        flagged = batch.columns[:, names.index(f"flag_{anomaly}")]
        np.testing.assert_array_equal(flagged, verdicts.flag[inside, k])
    assert verdicts.flag[inside].any()


def test_an_empty_span_is_no_traffic(made):
    folder, weights, read = made
    assert not len(traffic(weights, folder / "validated", read, START_US, START_US))
