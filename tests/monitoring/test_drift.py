"""The detector: distances as scipy's, sites set apart, each scan once, and bad streams answered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import kolmogorov as scipys_kolmogorov
from scipy.stats import ks_2samp

from monitoring.calibrate import calibrated
from monitoring.drift import MINIMUM, NEW_LOCATIONS, Detector, kolmogorov, thinner
from monitoring.reference import CUTS, UNCALIBRATED, Batch, Reference
from tests.monitoring.drifting import COLUMNS as THREE
from tests.monitoring.drifting import MONDAY, days_of
from trail.scan import DAY_US, HOUR_US

BEFORE = days_of(28, first=MONDAY - 28)
PLAIN = Reference.make(BEFORE, THREE)
REFERENCE = calibrated(PLAIN, BEFORE, replicates=30)
STREAM = days_of(9, seed=5)
END = (MONDAY + 9) * DAY_US - 1


def fed(*batches, reference=REFERENCE):
    detector = Detector.of(reference)
    for batch in batches:
        detector.add(batch)
    return detector


def measure(found, column, window="7d"):
    return next(m for m in found.measures if (m.column, m.window) == (column, window))


def changed(batch, column, values):
    columns = batch.columns.copy()
    columns[:, column] = values
    return replace(batch, columns=columns)


@pytest.mark.parametrize(("window", "days"), [("1d", 1), ("3d", 3), ("7d", 7)])
def test_distance_of_a_window_is_scipys_on_its_scans(window, days):
    one_site = replace(BEFORE, site=np.zeros_like(BEFORE.site))
    stream = replace(STREAM, site=np.zeros_like(STREAM.site))
    found = fed(stream, reference=Reference.make(one_site, THREE)).evaluate(END)
    inside = STREAM.time_us >= (MONDAY + 9 - days) * DAY_US
    exact = ks_2samp(BEFORE.columns[:, 0], STREAM.columns[inside, 0]).statistic
    d = measure(found, "x", window).d
    assert exact - 1 / (CUTS - 1) <= d <= exact + 1e-6
    assert measure(found, "x", window).n == inside.sum()


def test_p_values_are_those_of_independent_scans():
    x = np.linspace(0, 5, 300)
    np.testing.assert_allclose(kolmogorov(x), scipys_kolmogorov(x), atol=1e-9)
    found = fed(STREAM, reference=PLAIN).evaluate(END)
    shown = measure(found, "x")
    effective = np.sqrt(shown.n * PLAIN.n / (shown.n + PLAIN.n))
    assert shown.p_value_iid == pytest.approx(scipys_kolmogorov(effective * shown.d), abs=1e-9)


def test_an_honest_stream_does_not_alarm():
    found = fed(STREAM).evaluate(END)
    assert 0 < found.retrain_score < 1 and found.reasons == ()
    assert {w.status for w in found.windows} == {"judged"}
    assert not found.warming_up


def test_a_moved_mean_alarms_in_its_column_alone():
    found = fed(changed(STREAM, 0, STREAM.columns[:, 0] + 1)).evaluate(END)
    assert found.reasons == ("x",)
    assert found.retrain_score == max(m.score for m in found.measures if m.window in ("3d", "7d"))
    worst = found.features["x"]
    assert worst.score == pytest.approx(worst.d / worst.threshold) and worst.score >= 1


def test_another_mix_of_sites_shows_in_location_only():
    at_site = np.float32(3) * BEFORE.site
    reference = Reference.make(changed(BEFORE, 0, BEFORE.columns[:, 0] + at_site), THREE)
    moved = replace(STREAM, site=np.where(STREAM.site == 0, 2, STREAM.site).astype(np.int32))
    moved = changed(moved, 0, moved.columns[:, 0] + np.float32(3) * moved.site)
    found = fed(moved, reference=reference).evaluate(END)
    assert measure(found, "location").d == pytest.approx(1 / 3, abs=0.06)
    assert measure(found, "x").d < 0.06
    assert found.reasons == ("location",)


def test_a_new_site_is_left_out_and_told():
    boxes = np.unique(STREAM.box)[::10]
    new = np.isin(STREAM.box, boxes)
    there = np.where(new, 3, STREAM.site).astype(np.int32)
    strange = replace(STREAM, site=there, sites=(*STREAM.sites, "F9"))
    strange = changed(strange, 0, np.where(new, 50, STREAM.columns[:, 0]))
    found = fed(strange).evaluate(END)
    assert found == replace(fed(STREAM.take(~new)).evaluate(END), locations=found.locations)
    (place,) = found.locations
    assert (place.location, place.n) == ("F9", new.sum())
    assert place.boxes == min(len(boxes), 32) and place.days == 9
    assert place.first_us == STREAM.time_us[new].min()
    assert place.last_us == STREAM.time_us[new].max()


def test_more_new_sites_than_kept_are_counted_together():
    n = NEW_LOCATIONS + 30
    batch = STREAM.take(np.arange(n))
    names = tuple(f"N{i}" for i in range(n))
    found = fed(replace(batch, site=np.arange(n, dtype=np.int32), sites=names)).evaluate(END)
    assert len(found.locations) == NEW_LOCATIONS and found.elsewhere == 30


def test_a_new_category_of_a_twentieth_alarms():
    new = np.isin(STREAM.box, np.unique(STREAM.box)[::10])
    found = fed(changed(STREAM, 2, np.where(new, 9, STREAM.columns[:, 2]))).evaluate(END)
    assert "op" in found.reasons


def test_missing_values_alarm():
    found = fed(changed(STREAM, 1, np.where(STREAM.box % 2, np.nan, 0))).evaluate(END)
    assert "y" in found.reasons


def test_a_column_all_missing_is_as_far_as_can_be():
    found = fed(changed(STREAM, 1, np.nan)).evaluate(END)
    assert measure(found, "y").d == pytest.approx(1)
    assert np.isfinite([m.score for m in found.measures]).all()


def test_constant_columns_are_judged_like_others():
    still = Reference.make(changed(BEFORE, 1, 7.0), THREE)
    same = fed(changed(STREAM, 1, 7.0), reference=still).evaluate(END)
    other = fed(changed(STREAM, 1, 7.5), reference=still).evaluate(END)
    assert measure(same, "y").d == 0
    assert measure(other, "y").d == pytest.approx(1) and "y" in other.reasons


def test_too_few_scans_are_not_judged():
    few = STREAM.take(np.arange(0, len(STREAM), len(STREAM) // 150))
    found = fed(changed(few, 0, 99.0)).evaluate(END)
    assert {w.status for w in found.windows} == {"too_few"}
    assert found.max_score == 0 and found.warming_up
    assert measure(found, "x").d == pytest.approx(1, abs=0.01)


def test_windows_warm_up():
    found = fed(days_of(2, seed=5)).evaluate((MONDAY + 2) * DAY_US - 1)
    status = {w.name: w.status for w in found.windows}
    assert status == {"500": "judged", "1d": "judged", "3d": "warming_up", "7d": "warming_up"}
    assert found.warming_up and found.retrain_score == 0 < found.warn_score


def test_nothing_seen_gives_an_evaluation():
    found = Detector.of(REFERENCE).evaluate()
    assert found.max_score == 0 and found.n == 0 and found.locations == ()
    assert len(found.measures) == 4 * 4


def test_thin_windows_need_larger_distances():
    assert thinner(1000, 1000) == thinner(5000, 1000) == 1
    assert thinner(250, 1000) == 2
    rare = np.isin(STREAM.box, np.unique(STREAM.box)[::4])
    thin, full = fed(STREAM.take(rare)).evaluate(END), fed(STREAM).evaluate(END)
    ratio = measure(thin, "x").threshold / measure(full, "x").threshold
    assert ratio == pytest.approx(2, rel=0.1)
    assert measure(thin, "x").n >= MINIMUM


def test_a_scan_is_counted_once():
    numbered = replace(STREAM, id=np.arange(len(STREAM)))
    detector = fed(numbered)
    once = detector.evaluate(END)
    assert detector.add(numbered) == 0
    assert detector.add(numbered.take(np.arange(100, 200))) == 0
    again = detector.evaluate(END)
    assert again == replace(once, repeated=len(STREAM) + 100)


def test_a_number_twice_in_one_batch_is_counted_once():
    twice = np.repeat(np.arange(300), 2)
    detector = fed(replace(STREAM.take(twice), id=twice.astype(np.int64)))
    assert detector.evaluate(END).n == 300
    assert detector.last_id == 299


def test_after_a_restart_a_scan_is_still_counted_once():
    numbered = replace(STREAM, id=np.arange(len(STREAM)))
    restarted = Detector.from_bytes(REFERENCE, fed(numbered).to_bytes())
    assert restarted.add(numbered) == 0


def test_other_columns_are_refused_and_no_scans_are_nothing():
    detector = Detector.of(REFERENCE)
    with pytest.raises(ValueError, match="the reference has 3"):
        detector.add(replace(STREAM, columns=STREAM.columns[:, :2]))
    assert detector.add(STREAM.take(np.arange(0))) == 0
    empty = Batch.of(np.empty((0, 3), np.float32), [], np.empty(0, int), np.empty(0, int))
    assert detector.add(empty) == 0


def test_an_uncalibrated_reference_says_so():
    found = fed(STREAM, reference=PLAIN).evaluate(END)
    assert found.calibration.status == "insufficient_reference"
    assert measure(found, "x", "500").threshold == UNCALIBRATED


def test_a_clock_set_back_keeps_what_was_seen():
    detector = fed(STREAM)
    now, before = detector.evaluate(END), detector.evaluate(END - 3 * HOUR_US)
    assert {w.name: w.n for w in before.windows}["7d"] >= {w.name: w.n for w in now.windows}["7d"]
    assert detector.evaluate(END) == now


def test_without_a_moment_the_streams_own_clock_counts():
    detector = fed(STREAM)
    found = detector.evaluate()
    assert found.now_us == found.clock_us == detector.evaluate(found.clock_us).now_us
    assert END - found.clock_us < DAY_US
