"""The reference: cells that keep distances, files that keep it, and what it is refused for."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ks_2samp

from monitoring.calibrate import calibrated
from monitoring.drift import Comparison
from monitoring.reference import (
    CELLS,
    COLUMNS,
    CUTS,
    FEW,
    MONITORED,
    SITES,
    STRATA,
    Batch,
    Column,
    Reference,
    ReferenceError,
    box_key,
    coded,
    counted,
    monitored,
)
from tests.monitoring.drifting import COLUMNS as THREE
from tests.monitoring.drifting import days_of
from tests.trail.small import HONEST, REGISTRY, code, scans_of
from tests.trail.small import SITES as SMALL_SITES
from trail.facts import Context
from trail.features import FEATURES, encode
from trail.scan import DAY_US

NUMERIC = (Column("x", "numeric", "x"),)
LEVELS = (Column("x", "categorical", "x"),)


def batch_of(values, site=None, sites=("A",)):
    n = len(values)
    columns = np.asarray(values, np.float32).reshape(n, -1)
    site = np.zeros(n, np.int32) if site is None else np.asarray(site, np.int32)
    return Batch(columns, site, sites, np.arange(n), np.arange(n) * 1_000_000)


def distance(reference, values):
    codes = coded(np.asarray(values, np.float32)[:, None], reference.cuts, reference.used)
    counts = counted(codes, np.zeros(len(codes), int), 1)
    return float(Comparison(reference)(counts, np.array([[len(codes)]]))[0, 0])


def scipys(old, new):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of the p-value of a few scans
        return ks_2samp(old, new, method="asymp").statistic


few = st.lists(st.integers(-12, 12).map(lambda i: i / 4), min_size=1, max_size=80)
many = st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=400)


@given(few, few)
@settings(max_examples=100, deadline=None)
def test_distance_of_few_values_is_scipys_exactly(old, new):
    reference = Reference.make(batch_of(old), NUMERIC)
    assert distance(reference, new) == pytest.approx(
        ks_2samp(old, new, method="asymp").statistic, abs=1e-6
    )


@given(many, many)
@settings(max_examples=100, deadline=None)
def test_distance_of_any_values_is_scipys_but_for_one_cell(old, new):
    reference = Reference.make(batch_of(old), NUMERIC)
    exact = scipys(np.float32(old), np.float32(new))
    assert exact - 1 / (CUTS - 1) - 1e-6 <= distance(reference, new) <= exact + 1e-6


@given(st.lists(st.integers(0, 5) | st.just(None), min_size=1, max_size=60), few)
@settings(max_examples=100, deadline=None)
def test_missing_values_lie_beyond_all_others(old, new):
    values = [np.nan if v is None else v for v in old]
    beyond = [1e9 if v is None else v for v in old]
    reference = Reference.make(batch_of(values), NUMERIC)
    assert distance(reference, new) == pytest.approx(
        ks_2samp(beyond, new, method="asymp").statistic, abs=1e-6
    )


@given(st.lists(st.integers(0, 4), min_size=1, max_size=50), few)
@settings(max_examples=100, deadline=None)
def test_categories_are_compared_by_total_variation(old, new):
    new = [abs(round(v)) % 5 for v in new if abs(round(v)) % 5 in old] or [old[0]]
    p = np.bincount(old, minlength=5) / len(old)
    q = np.bincount(new, minlength=5) / len(new)
    reference = Reference.make(batch_of(old), LEVELS)
    assert distance(reference, new) == pytest.approx(np.abs(p - q).sum() / 2, abs=1e-6)


def test_new_categories_count_five_fold_and_missing_ones_once():
    reference = Reference.make(batch_of([0, 1] * 50), LEVELS)
    assert distance(reference, [0, 1] * 45 + [7] * 10) == pytest.approx(0.5, abs=1e-6)
    assert distance(reference, [0, 1] * 45 + [0.5] * 10) == pytest.approx(0.5, abs=1e-6)
    assert distance(reference, [0, 1] * 45 + [np.nan] * 10) == pytest.approx(0.1, abs=1e-6)
    assert distance(reference, [7] * 100) == pytest.approx(1)


def test_a_constant_column_notices_any_other_value():
    reference = Reference.make(batch_of([3.0] * 50), NUMERIC)
    assert distance(reference, [3.0] * 20) == 0
    for other in (2.999, 3.001, -np.inf, np.nan):
        assert distance(reference, [3.0] * 15 + [other] * 5) == pytest.approx(0.25)


def test_a_column_that_was_always_missing_notices_values():
    reference = Reference.make(batch_of([np.nan] * 50), NUMERIC)
    assert distance(reference, [np.nan] * 20) == 0
    assert distance(reference, [np.nan] * 15 + [1.0] * 5) == pytest.approx(0.25)


def test_more_categories_than_cells_leave_the_rare_ones_new():
    values = [*range(100), *([0] * 300), *([1] * 300)]
    reference = Reference.make(batch_of(values), LEVELS)
    assert reference.used[0] <= CUTS
    assert distance(reference, values) == pytest.approx(0, abs=1e-6)


def test_a_reference_comes_back_from_its_files_bit_by_bit(tmp_path):
    batch = days_of(14)
    made = calibrated(Reference.make(batch, THREE), batch, replicates=3)
    made.save(tmp_path)
    read = Reference.load(tmp_path)
    assert read.id == made.id
    assert read.calibration == made.calibration
    assert read.names == ("x", "y", "op") and read.measured[-1] == "location"
    for name in ("cuts", "used", "level", "level_n", "stratum", "cells", "sample"):
        np.testing.assert_array_equal(getattr(read, name), getattr(made, name))
    first = [(tmp_path / f).read_bytes() for f in ("reference.json", "reference.safetensors")]
    read.save(tmp_path)
    assert first == [
        (tmp_path / f).read_bytes() for f in ("reference.json", "reference.safetensors")
    ]


def test_calibration_does_not_change_what_states_belong_to():
    batch = days_of(14)
    plain = Reference.make(batch, THREE)
    assert calibrated(plain, batch, replicates=2).id == plain.id
    assert Reference.make(days_of(14, seed=1), THREE).id != plain.id


@pytest.mark.parametrize("file", ["reference.json", "reference.safetensors"])
def test_a_missing_file_is_told(tmp_path, file):
    Reference.make(days_of(2), THREE).save(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ReferenceError, match="no drift reference"):
        Reference.load(tmp_path)


def test_a_damaged_or_changed_reference_is_refused(tmp_path):
    Reference.make(days_of(2), THREE).save(tmp_path)
    arrays = tmp_path / "reference.safetensors"
    whole = arrays.read_bytes()
    arrays.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ReferenceError, match="damaged"):
        Reference.load(tmp_path)
    arrays.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ReferenceError, match="changed"):
        Reference.load(tmp_path)
    arrays.write_bytes(whole)
    told = json.loads((tmp_path / "reference.json").read_text())
    (tmp_path / "reference.json").write_text(json.dumps({**told, "n": told["n"] + 1}))
    with pytest.raises(ReferenceError, match="changed"):
        Reference.load(tmp_path)
    (tmp_path / "reference.json").write_text(json.dumps({**told, "version": 99}))
    with pytest.raises(ReferenceError, match="version 99"):
        Reference.load(tmp_path)


def test_no_scans_or_other_columns_make_no_reference():
    empty = days_of(1).take(np.arange(0))
    with pytest.raises(ReferenceError, match="needs scans"):
        Reference.make(empty, THREE)
    with pytest.raises(ReferenceError, match="3 columns with 1 names"):
        Reference.make(days_of(1), NUMERIC)
    wide = batch_of(np.zeros((3, COLUMNS + 1)))
    with pytest.raises(ReferenceError, match="at most"):
        Reference.make(wide, NUMERIC * (COLUMNS + 1))


def test_a_batch_whose_columns_differ_in_length_is_refused():
    batch = days_of(1)
    with pytest.raises(ValueError, match="other lengths"):
        replace(batch, box=batch.box[:-1]).checked()
    with pytest.raises(ValueError, match="does not name"):
        replace(batch, sites=("A",)).checked()


def test_a_batch_codes_locations():
    batch = Batch.of(np.zeros((3, 1), np.float32), ["7", "9", "7"], np.arange(3), np.arange(3))
    assert batch.sites == ("7", "9") and batch.site.tolist() == [0, 1, 0]


def test_rare_sites_share_a_distribution_and_the_rarest_a_level():
    n = SITES + 50
    site = np.concatenate([np.arange(n), np.repeat(np.arange(STRATA + 9), 120)])
    names = tuple(f"S{i:05d}" for i in range(n))
    reference = Reference.make(batch_of(np.zeros(len(site)), site, names), NUMERIC)
    assert len(reference.sites) == n
    assert len(reference.level_n) == SITES and reference.level.max() == SITES - 1
    assert reference.level_n.sum() == len(site)
    assert len(reference.cells) == STRATA
    assert reference.cells.sum() == len(site)
    assert (reference.stratum[reference.level_n < 100] == 0).all()


def test_cell_shares_sum_to_one_with_missing_last():
    reference = Reference.make(batch_of([1.0, 2.0, 2.0, np.nan]), NUMERIC)
    ends, shares = reference.cell_shares("x")
    assert len(shares) == len(ends) + 2
    assert shares.sum() == pytest.approx(1) and shares[-1] == 0.25
    assert shares[list(ends).index(2.0)] == 0.5


@pytest.mark.parametrize("rows", [None, "drawn"])
def test_scans_are_counted_alike_in_one_go_and_column_by_column(rows):
    rng = np.random.default_rng(4)
    codes = rng.integers(0, CELLS, (2 * FEW, 3)).astype(np.uint8)
    group = rng.integers(0, 5, 2 * FEW)
    drawn = None if rows is None else rng.integers(0, 2 * FEW, 2 * FEW)
    parts = [slice(0, FEW), slice(FEW, 2 * FEW)]
    few = [
        counted(codes[p], group[p], 5) if drawn is None else counted(codes, group[p], 5, drawn[p])
        for p in parts
    ]
    np.testing.assert_array_equal(counted(codes, group, 5, drawn), sum(few))


@pytest.fixture(scope="module")
def seen():
    """Monitored columns of forty honest trails, in trail order."""
    scans = scans_of([(code(serial=s), HONEST) for s in range(1, 41)])
    encoded = encode(scans, Context(SMALL_SITES, None, REGISTRY))
    ordered = encoded.trails.scans
    n = len(ordered)
    probability = np.linspace(0, 1, n * 5, dtype=np.float32).reshape(n, 5)
    columns = monitored(
        encoded.features, ordered.op, ordered.time_us, probability, probability > 0.5
    )
    return ordered, encoded, columns, probability


def column(columns, name):
    return columns[:, [c.name for c in MONITORED].index(name)]


def test_monitored_columns_are_what_their_names_say(seen):
    scans, encoded, columns, probability = seen
    assert columns.shape == (400, len(MONITORED)) and columns.dtype == np.float32
    first = encoded.features[:, FEATURES.index("is_first")] > 0
    gap_h = np.diff(scans.time_us, prepend=0) / 3600e6
    np.testing.assert_allclose(column(columns, "gap_h")[~first], gap_h[~first], rtol=1e-4)
    assert np.isnan(column(columns, "gap_h")[first]).all()
    np.testing.assert_array_equal(column(columns, "position")[:10], np.arange(10))
    np.testing.assert_array_equal(column(columns, "op"), scans.op)
    np.testing.assert_allclose(column(columns, "hour"), scans.time_us % DAY_US / 3600e6, rtol=1e-6)
    assert (column(columns, "box_size") == 40).all()
    assert (column(columns, "commissioned") == 1).all()
    np.testing.assert_array_equal(column(columns, "p_jump"), probability[:, 4])
    np.testing.assert_array_equal(column(columns, "flag_epcFake"), probability[:, 0] > 0.5)


def test_a_step_without_a_network_is_missing_not_usual(seen):
    assert np.isnan(column(seen[2], "step_z")).all()


def test_boxes_are_the_mates_of_a_second(seen):
    scans, *_ = seen
    boxes = box_key(scans.lot, scans.time_us)
    assert len(np.unique(boxes)) == 10
    assert (boxes[:10] == boxes[10:20]).all()
    other = box_key(scans.lot + 1, scans.time_us)
    assert not np.isin(other, boxes).any()


def test_names_are_distinct_and_few_enough():
    assert len({c.name for c in MONITORED}) == len(MONITORED) <= COLUMNS
    assert CELLS <= 256
