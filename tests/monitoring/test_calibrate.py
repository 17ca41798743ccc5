"""Calibration: it finds what varies, replays the detector itself, and holds what it promises."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import binomtest

from monitoring.calibrate import (
    DAYS,
    WARM_UP,
    Blocks,
    Replay,
    Unit,
    calibrated,
    clopper_pearson,
    few_blocks,
    thresholds,
    unseen,
)
from monitoring.drift import Detector
from monitoring.reference import WINDOWS, Calibration, Reference
from monitoring.windows import A_DAY, SLOT_US
from tests.monitoring.drifting import COLUMNS as THREE
from tests.monitoring.drifting import MONDAY, days_of
from trail.scan import DAY_US

FULL = bool(os.environ.get("TRAILWATCH_FULL"))
MONTH = 28


def reference_of(batch):
    return Reference.make(batch, THREE)


def unit_of(seed=0, days=MONTH, **kind):
    batch = days_of(days, seed, **kind)
    return Blocks.of(reference_of(batch), batch).unit(np.random.default_rng(seed))


@given(
    arrays.arrays(np.float64, (40, 2, 3), elements=st.floats(0, 1, width=32)),
    st.sampled_from([0.0, 0.1, 0.5]),
)
@settings(max_examples=100, deadline=None)
def test_at_most_the_target_share_of_the_streams_alarm(peaks, floor):
    found = thresholds(peaks, np.full(3, floor))
    assert (found >= floor).all()
    alarms = (peaks[1::2] >= found).any(axis=(1, 2)) & (peaks[1::2] >= floor).any(axis=(1, 2))
    assert alarms.mean() <= 0.1 or floor == 0


def test_thresholds_follow_each_columns_own_spread():
    rng = np.random.default_rng(0)
    peaks = np.abs(rng.normal(size=(400, 1, 3))) * [0.1, 0.2, 0.4]
    found = thresholds(peaks, np.zeros(3))[0]
    np.testing.assert_allclose(found[1:] / found[0], [2, 4], rtol=0.25)
    new = np.abs(rng.normal(size=(4000, 3))) * [0.1, 0.2, 0.4]
    assert 0.04 < (new >= found).any(axis=1).mean() < 0.2


def test_few_blocks_raise_thresholds():
    assert few_blocks(7, days=7) == pytest.approx(1.36, abs=0.01)
    assert few_blocks(21) == pytest.approx(1.12, abs=0.01)
    assert few_blocks(10_000) == pytest.approx(1, abs=1e-3)
    assert few_blocks(0) == few_blocks(1) > few_blocks(2) > few_blocks(3)


@pytest.mark.parametrize("weeks", [4, 6])
def test_days_to_come_vary_by_more_than_days_drawn_again(weeks):
    """Means of days, drawn as a replay draws them, against as many that are new."""
    rng, n = np.random.default_rng(1), 40_000
    unit = Unit("day", weekly=True)
    factor = unseen(unit, 7 * weeks) / few_blocks(7 * weeks - 7)
    known = rng.normal(size=(n, 7, weeks))
    row = np.arange(n)[:, None]

    def drawn(size: int) -> np.ndarray:
        weekday = np.arange(size) % 7
        return known[row, weekday, rng.integers(weeks, size=(n, size))].mean(axis=1)

    for window, found in zip(WINDOWS, factor, strict=True):
        days = max(window.days, 1)
        again = drawn(days) - drawn(7 * weeks // 2)
        new = rng.normal(size=(n, days)).mean(axis=1) - known.mean(axis=(1, 2))
        assert found == pytest.approx(max(new.std() / again.std(), 1), abs=0.02)


def test_many_boxes_need_no_factor():
    assert unseen(Unit("box"), 5_000) == pytest.approx(1, abs=1e-3)
    assert (unseen(Unit("day", days=7), 8) >= few_blocks(7, days=7)).all()


@pytest.mark.parametrize(("k", "n"), [(0, 20), (3, 20), (20, 20), (1, 200)])
def test_the_interval_is_scipys(k, n):
    exact = binomtest(k, n).proportion_ci(method="exact")
    assert clopper_pearson(k, n) == pytest.approx((exact.low, exact.high))


@pytest.mark.parametrize(
    ("kind", "unit"),
    [
        ({"alike": 0.0, "size": 1, "boxes": 400}, Unit("box")),
        ({"alike": 0.3}, Unit("box")),
        ({"alike": 0.3, "weekly": 0.5}, Unit("weekday", weekly=True)),
        ({"alike": 0.3, "daily": 0.6}, Unit("day")),
        ({"alike": 0.3, "weekly": 1.0, "daily": 0.5}, Unit("day", weekly=True)),
    ],
    ids=["iid", "boxes", "weekly", "days", "weekly and days"],
)
def test_it_finds_what_varies(kind, unit):
    found = [unit_of(seed, **kind) for seed in range(5)]
    assert sum(one == unit for one in found) >= 4, found


def test_days_that_last_are_kept_together_by_the_week():
    found = [unit_of(seed, days=63, daily=1.0, lasting=0.9) for seed in range(3)]
    assert [one.days for one in found] == [7, 7, 7]


def test_days_that_differ_are_kept_together_where_there_are_weeks_enough():
    assert unit_of(days=56, daily=1.0).days == 7
    assert unit_of(days=55, daily=1.0).days == 1
    assert unit_of(days=56).days == 1


@pytest.mark.parametrize(
    "unit", [Unit("box"), Unit("weekday", True), Unit("day", True), Unit("day", False, 7)], ids=str
)
def test_a_replay_holds_what_the_detector_holds(unit):
    batch = days_of(MONTH, weekly=0.5)
    reference = reference_of(batch)
    replay = Replay(reference, Blocks.of(reference, batch), unit)
    _, stream = replay.stream(np.random.default_rng(1))
    detector = Detector.of(reference)
    within = np.arange(len(stream.row)) % 1000  # keeps their order, and does not leave the slot
    live = replace(batch.take(stream.row), time_us=(stream.slot + 4 * MONDAY) * SLOT_US + within)
    moments = {int(s): i for i, s in enumerate(range(WARM_UP * A_DAY, (WARM_UP + DAYS) * A_DAY))}
    contents, checked = replay.contents(stream), 0
    for slot in np.unique(stream.slot).tolist():
        detector.add(live.take(stream.slot == slot))
        if slot not in moments or slot % 20 != 1:
            continue
        now = (slot + 1 + 4 * MONDAY) * SLOT_US - 1
        for window, (cells, levels) in zip(WINDOWS, contents, strict=True):
            at = moments[slot] // 2 if window.days else moments[slot]
            held = detector._windows.content(window, now)
            np.testing.assert_array_equal(held.counts, cells[at])
            np.testing.assert_array_equal(held.levels, levels[at])
            checked += 1
    assert checked >= 16


@pytest.mark.parametrize(
    ("unit", "step"), [(Unit("weekday", True), 7), (Unit("day", True), 7)], ids=str
)
def test_days_are_drawn_for_their_weekday(unit, step):
    batch = days_of(MONTH)
    weekday = (batch.time_us // DAY_US % 7).astype(np.float32)
    columns = batch.columns.copy()
    columns[:, 0] = weekday
    batch = replace(batch, columns=columns)
    reference = reference_of(batch)
    replay = Replay(reference, Blocks.of(reference, batch), unit)
    _, stream = replay.stream(np.random.default_rng(3))
    days = stream.slot // A_DAY
    seen = [np.unique(weekday[stream.row[days == d]]).tolist() for d in range(21)]
    assert all(len(s) == 1 for s in seen)
    assert all((b[0] - a[0]) % step == 1 for a, b in pairwise(seen))


@pytest.mark.parametrize(
    ("days", "kind", "why"),
    [
        (10, {}, "14 days are needed"),
        (20, {"weekly": 1.0}, "28 days are needed"),
        (18, {"daily": 1.0}, "21 days are needed"),
        (35, {"daily": 1.0, "lasting": 0.95}, "whole weeks"),
        (20, {"boxes": 5, "size": 60}, "200 boxes are needed"),
    ],
)
def test_a_reference_that_is_too_small_says_so(days, kind, why):
    batch = days_of(days, seed=2, **kind)
    found = calibrated(reference_of(batch), batch, replicates=4).calibration
    assert found.status == "insufficient_reference"
    assert why in found.reason


@pytest.mark.parametrize("days", [1, 2])
def test_next_to_nothing_is_answered(days):
    batch = days_of(days, boxes=2)
    found = calibrated(reference_of(batch), batch, replicates=4).calibration
    assert found.status == "insufficient_reference" and found.estimate is None
    assert "nothing can be held against the rest" in found.reason


def test_days_without_scans_are_answered():
    batch = days_of(40)
    day = batch.time_us // DAY_US - MONDAY
    kept = batch.take((day % 5 == 0) | (day == 39))
    found = calibrated(reference_of(kept), kept, replicates=3).calibration
    assert found.status == "insufficient_reference" and "have scans" in found.reason


def test_constant_and_missing_columns_are_calibrated_at_their_floor():
    batch = days_of(MONTH)
    columns = batch.columns.copy()
    columns[:, 0], columns[:, 1] = 4.0, np.nan
    batch = replace(batch, columns=columns)
    found = calibrated(reference_of(batch), batch, replicates=20).calibration
    assert found.status == "calibrated"
    assert all(values[:2] == (0.1, 0.1) for values in found.thresholds.values())


def test_a_calibration_is_the_same_for_the_same_seed_and_says_what_it_is():
    batch = days_of(MONTH, weekly=0.5)
    reference, steps = reference_of(batch), []
    one = calibrated(reference, batch, seed=3, replicates=20, progress=steps.append).calibration
    assert one == calibrated(reference, batch, seed=3, replicates=20).calibration
    assert sum(steps) == 40
    assert (one.status, one.unit, one.target) == ("calibrated", "weekday", 0.1)
    assert one.ci95[0] <= one.estimate <= one.ci95[1]
    assert one.usual == {"500": 500, "1d": 400, "3d": 1200, "7d": 2800}
    assert one.blocks == len(np.unique(batch.box))
    assert Calibration.from_json(one.to_json()) == one


def test_short_windows_need_larger_distances():
    batch = days_of(MONTH, weekly=0.5)
    found = calibrated(reference_of(batch), batch, replicates=30).calibration.thresholds
    assert found["1d"][0] > found["3d"][0] > found["7d"][0] >= 0.1


@pytest.mark.parametrize(
    "kind",
    [{}, {"weekly": 0.5}, {"weekly": 0.5, "daily": 0.22}],
    ids=["boxes", "weekly", "weekly and days"],
)
def test_honest_months_hardly_ever_alarm(kind):
    streams, alarms = (60 if FULL else 3), 0
    for seed in range(streams):
        batch = days_of(MONTH + WARM_UP + DAYS, seed, **kind)
        day = batch.time_us // DAY_US - MONDAY
        before = batch.take(day < MONTH)
        made = calibrated(reference_of(before), before, seed, replicates=60, held_out=0)
        detector, alarm = Detector.of(made), False
        for i in range(MONTH, MONTH + WARM_UP + DAYS):
            detector.add(batch.take(day == i))
            found = detector.evaluate((MONDAY + i + 1) * DAY_US - 1)
            alarm |= i >= MONTH + WARM_UP and found.retrain_score >= 1
        alarms += alarm
    assert clopper_pearson(alarms, streams)[0] <= 0.1
