"""Windows: counts however scans arrive, clocks that lie, states that are bytes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.drift import NEW_LOCATIONS, Detector
from monitoring.reference import (
    COLUMNS,
    RECENT,
    SITES,
    WINDOWS,
    Batch,
    Column,
    Reference,
    coded,
    placed,
)
from monitoring.windows import MOST_BYTES, SLOT_US, StateError, Windows
from tests.monitoring.drifting import COLUMNS as THREE
from tests.monitoring.drifting import MONDAY, days_of
from trail.scan import DAY_US, HOUR_US

BEFORE = days_of(14, first=MONDAY - 14)
REFERENCE = Reference.make(BEFORE, THREE)
STREAM = days_of(9, seed=5)
END = (MONDAY + 9) * DAY_US - 1
BY_DAYS = [window for window in WINDOWS if window.days]


def fed(windows, batch, now_us=None):
    codes = coded(batch.columns, REFERENCE.cuts, REFERENCE.used)
    level = placed(batch, {s: i for i, s in enumerate(REFERENCE.sites)})
    windows.add(codes, level, batch.time_us, now_us)
    return windows


def at(batch, time_us):
    return replace(batch, time_us=np.full(len(batch), time_us))


def some(n):
    return STREAM.take(np.arange(n))


@given(st.lists(st.integers(1, 1200), min_size=1, max_size=8), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_windows_do_not_depend_on_requests_nor_on_order_within_them(sizes, seed):
    whole, parts = fed(Windows(REFERENCE), STREAM), Windows(REFERENCE)
    rng, start = np.random.default_rng(seed), 0
    for size in [*sizes, len(STREAM)]:
        mine = rng.permutation(np.arange(start, min(start + size, len(STREAM))))
        fed(parts, STREAM.take(mine))
        start += size
    for window in BY_DAYS:
        one, other = whole.content(window, END), parts.content(window, END)
        np.testing.assert_array_equal(one.counts, other.counts)
        np.testing.assert_array_equal(one.levels, other.levels)


@pytest.mark.parametrize("window", BY_DAYS, ids=lambda w: w.name)
def test_a_window_holds_its_days_and_nothing_else(window):
    content = fed(Windows(REFERENCE), STREAM).content(window, END)
    inside = STREAM.time_us >= (MONDAY + 9 - window.days) * DAY_US
    assert content.n == inside.sum() == content.levels.sum()
    assert (content.counts.sum(axis=1) == content.n).all()
    assert content.complete
    assert content.since_us == (MONDAY + 9 - window.days) * DAY_US


def test_the_last_scans_are_the_last_five_hundred():
    content = fed(Windows(REFERENCE), STREAM).content(WINDOWS[0])
    last = STREAM.take(np.arange(len(STREAM) - RECENT, len(STREAM)))
    assert content.n == RECENT
    np.testing.assert_array_equal(content.levels, np.bincount(last.site, minlength=3))


def test_windows_empty_when_traffic_stops():
    windows = fed(Windows(REFERENCE), STREAM)
    assert windows.content(BY_DAYS[-1], END + 8 * DAY_US).n == 0
    assert windows.content(BY_DAYS[-1], END + 6 * DAY_US).n > 0


def test_a_young_window_is_not_complete():
    windows = fed(Windows(REFERENCE), days_of(4, seed=5))
    now = (MONDAY + 4) * DAY_US - 1
    complete = {window.name: windows.content(window, now).complete for window in WINDOWS}
    assert complete == {"500": True, "1d": True, "3d": True, "7d": False}


def test_nothing_seen_is_nothing_held():
    windows = Windows(REFERENCE)
    fed(windows, STREAM.take(np.arange(0)))
    assert all(windows.content(w, END).n == 0 for w in WINDOWS)
    assert not any(windows.content(w, END).complete for w in WINDOWS)


def test_late_scans_are_told_and_change_nothing():
    windows = fed(Windows(REFERENCE), STREAM)
    before = [windows.content(window, END).n for window in BY_DAYS]
    fed(windows, at(some(40), END - 8 * DAY_US))
    assert windows.late == 40
    assert [windows.content(window, END).n for window in BY_DAYS] == before


def test_scans_late_by_days_are_counted_where_they_belong():
    windows = fed(Windows(REFERENCE), STREAM)
    before = [windows.content(window, END).n for window in BY_DAYS]
    fed(windows, at(some(40), END - 5 * DAY_US))
    after = [windows.content(window, END).n for window in BY_DAYS]
    assert [b - a for a, b in zip(before, after, strict=True)] == [0, 0, 40]


def test_a_backlog_does_not_turn_the_clock_back():
    windows = fed(Windows(REFERENCE), STREAM)
    clock, held = windows.clock_us, windows.content(BY_DAYS[-1], END).n
    fed(windows, at(some(3 * RECENT), END - 20 * DAY_US))
    assert windows.clock_us == clock
    assert windows.content(BY_DAYS[-1], END).n == held


def test_a_reader_whose_clock_is_years_ahead_moves_nothing():
    windows = fed(Windows(REFERENCE), STREAM)
    clock = windows.clock_us
    fed(windows, at(some(30), END + 20_000 * DAY_US))
    assert windows.ahead == 30
    assert windows.clock_us - clock < HOUR_US * 24
    assert windows.content(BY_DAYS[0], END).n > 30


def test_a_wrong_first_scan_is_forgotten():
    windows = fed(Windows(REFERENCE), at(some(1), END + 20_000 * DAY_US))
    fed(windows, STREAM)
    assert windows.content(BY_DAYS[-1], END).n == (STREAM.time_us >= END - 7 * DAY_US).sum()
    assert windows.content(BY_DAYS[-1], END).complete


def test_the_present_bounds_the_clock():
    windows = fed(Windows(REFERENCE), at(some(2 * RECENT), END + 400 * DAY_US), now_us=END)
    assert windows.clock_us == END
    assert windows.content(BY_DAYS[0], END).n == 2 * RECENT == windows.ahead


def test_an_evaluation_whose_clock_went_back_a_little_loses_nothing():
    windows = fed(Windows(REFERENCE), STREAM)
    now = windows.content(BY_DAYS[-1], END)
    earlier = windows.content(BY_DAYS[-1], END - 5 * HOUR_US)
    assert earlier.n >= now.n


def test_a_state_comes_back_from_its_bytes():
    detector = Detector.of(REFERENCE)
    detector.add(STREAM)
    read = Detector.from_bytes(REFERENCE, detector.to_bytes())
    assert read.evaluate(END) == detector.evaluate(END)
    assert read.to_bytes() == detector.to_bytes()


@given(st.integers(1, 4000))
@settings(max_examples=15, deadline=None)
def test_a_restart_is_not_noticed(cut):
    through, restarted = Detector.of(REFERENCE), Detector.of(REFERENCE)
    cut = min(cut, len(STREAM))
    for part in (slice(0, cut), slice(cut, None)):
        batch = STREAM.take(part)
        through.add(batch)
        restarted.add(batch)
        restarted = Detector.from_bytes(REFERENCE, restarted.to_bytes())
    assert restarted.evaluate(END) == through.evaluate(END)


def test_a_state_of_another_reference_is_refused():
    state = Detector.of(Reference.make(days_of(14, seed=9), THREE)).to_bytes()
    with pytest.raises(StateError, match="start anew"):
        Detector.from_bytes(REFERENCE, state)


@given(st.binary(max_size=200))
@settings(max_examples=50, deadline=None)
def test_any_bytes_are_refused(data):
    with pytest.raises(StateError):
        Detector.from_bytes(REFERENCE, data)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_state_is_refused(share):
    state = Detector.of(REFERENCE).to_bytes()
    with pytest.raises(StateError):
        Detector.from_bytes(REFERENCE, state[: int(len(state) * share)])


def test_the_largest_state_stays_under_a_mebibyte():
    rng = np.random.default_rng(0)
    n = 40_000
    columns = tuple(Column(f"c{i}", "numeric", "") for i in range(COLUMNS))
    sites = tuple(f"site {i}" for i in range(SITES + NEW_LOCATIONS + 50))
    site = np.concatenate([np.arange(SITES), rng.integers(0, SITES, n - SITES)])
    batch = Batch(
        rng.normal(size=(n, COLUMNS)).astype(np.float32),
        site.astype(np.int32),
        sites,
        rng.integers(-(2**62), 2**62, n),
        np.sort(rng.integers(0, 9 * DAY_US, n)),
    )
    detector = Detector.of(Reference.make(batch, columns))
    detector.add(batch)
    strange = rng.integers(SITES, len(sites), n).astype(np.int32)
    for _ in range(2):
        detector.add(replace(batch, site=strange))
    found = detector.evaluate()
    assert len(found.locations) == NEW_LOCATIONS and found.elsewhere > 0
    arrays = sum(
        getattr(detector._windows, name).nbytes
        for name in ("_slot", "_counts", "_levels", "_codes", "_level", "_time")
    )
    assert arrays < MOST_BYTES
    assert len(detector.to_bytes()) < MOST_BYTES


def test_slots_divide_the_day():
    assert DAY_US % SLOT_US == 0
