"""Lots on unknown roads: who travels together, and what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest

from intake.master import read_sites
from intake.store import load_scans
from pipelines.stretching import MOST, stretched
from tests.pipelines.small_world import validated
from trail.facts import previous_of
from trail.scan import OP_DIRECTION, Op
from trail.trails import sort


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    folder = validated(tmp_path_factory.mktemp("stretching"))
    return load_scans(folder / "scans.parquet", read_sites(folder / "sites.csv")).scans


def legs(scans):
    """Scans that end a leg beyond the factory, where each began, and its distance in hours."""
    trails = sort(scans)
    there, previous = trails.scans, previous_of(trails.starts)
    end = np.flatnonzero((previous >= 0) & (there.op > Op.WMS_IN))
    end = end[OP_DIRECTION[there.op[end]] == 1]
    end = end[there.op[previous[end]] == there.op[end] - 1]
    start = previous[end]
    return there, start, end, (there.time_us[end] - there.time_us[start]) / 3.6e9


def pairs_together(scans):
    """Share of neighbours in serial number that left together and arrived together."""
    there, start, end, _ = legs(scans)
    key = np.stack([there.lot[start], there.op[start], there.time_us[start]], axis=1)
    order = np.lexsort((there.codes.serial[there.epc[start]], *key.T))
    left_together = (np.diff(key[order], axis=0) == 0).all(axis=1)
    came_together = np.diff(there.time_us[end[order]]) == 0
    return came_together[left_together].mean()


def test_a_load_takes_any_time_from_a_quarter_of_what_it_took_to_four_times(honest):
    def by_route(scans):
        there, start, end, hours = legs(scans)
        route = there.site[start].astype(np.int64) * 10_000 + there.site[end]
        number = np.unique(route, return_inverse=True)[1]
        usual = np.bincount(number, np.log(hours)) / np.bincount(number)
        return np.std(np.log(hours) - usual[number])

    uniform = np.log(MOST) / np.sqrt(3)  # the spread of what is added to a logarithm
    assert by_route(stretched(honest, 5)) == pytest.approx(
        np.hypot(by_route(honest), uniform), rel=0.1
    )


def test_mates_stay_together(honest):
    before, after = pairs_together(honest), pairs_together(stretched(honest, 5))
    assert before > 0.8
    assert after == pytest.approx(before, abs=0.01)


def test_stays_are_as_long_as_they_were_and_few_trails_are_lost(honest):
    def stays(scans):
        trails = sort(scans)
        there, previous = trails.scans, previous_of(trails.starts)
        at = np.flatnonzero(previous >= 0)
        at = at[there.site[previous[at]] == there.site[at]]
        took = there.time_us[at] - there.time_us[previous[at]]
        return dict(zip(there.row[at].tolist(), took.tolist(), strict=True))

    other = stretched(honest, 5)
    was = stays(honest)
    assert all(was[row] == took for row, took in stays(other).items())
    assert len(np.unique(other.epc)) > 0.9 * len(np.unique(honest.epc))
    assert other.time_us.max() <= honest.time_us.max()
    assert np.isin(other.row, honest.row).all()


def test_the_way_to_the_factory_s_own_warehouse_stays_as_it_is(honest):
    other = stretched(honest, 5)
    early = other.op <= Op.WMS_IN
    was = dict(zip(honest.row.tolist(), honest.time_us.tolist(), strict=True))
    assert early.any()
    assert [was[row] for row in other.row[early].tolist()] == other.time_us[early].tolist()


def test_the_same_seed_stretches_the_same_way_and_another_does_not(honest):
    one, same, other = stretched(honest, 5), stretched(honest, 5), stretched(honest, 6)
    np.testing.assert_array_equal(one.time_us, same.time_us)
    assert len(other) != len(one) or (other.time_us != one.time_us).any()


def test_goods_that_never_travel_have_nothing_to_stretch(honest):
    at_home = honest.take(honest.op <= Op.WMS_IN)
    assert len(stretched(at_home, 5)) == 0
    assert len(stretched(honest.take(np.empty(0, np.intp)), 5)) == 0
