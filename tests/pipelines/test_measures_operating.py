"""Figures at a threshold, calibration, delay, confusion, controls, business: by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    f1_score,
    fbeta_score,
    precision_score,
    recall_score,
)

from pipelines.measures import calibration
from pipelines.measures.blocks import Block
from pipelines.measures.business import alerts_a_day, any_counts, boxes, business, percent
from pipelines.measures.confusion import confusion
from pipelines.measures.controls import control_auc
from pipelines.measures.delay import delays, summarise
from pipelines.measures.operating import Counts, count
from pipelines.measures.settings import Settings
from tests.pipelines.test_measures_thresholds import SECTION
from trail.scan import HOUR_US, Op

SETTINGS = Settings.read(SECTION)
FLAGS = st.lists(st.tuples(st.booleans(), st.sampled_from([0, 1, -1])), min_size=1, max_size=50)


def block(trails, **columns) -> Block:
    """A block of trails, each a list of (hour, op); other columns are given or empty."""
    trail = np.repeat(np.arange(len(trails)), [len(t) for t in trails])
    n = len(trail)
    hours = np.array([hour for t in trails for hour, _ in t])
    given_ = {
        "name": "injected",
        "target": np.zeros((n, 5), np.int8),
        "scores": {},
        "lot": trail,
        "trail": trail,
        "position": np.concatenate([np.arange(len(t)) + 1 for t in trails]),
        "pace": np.full(n, np.nan, np.float32),
        "time_us": (hours * HOUR_US).astype(np.int64),
        "op": np.array([op for t in trails for _, op in t], np.int8),
        "anomaly": np.full(n, -1, np.int8),
        "subtype": np.full(n, -1, np.int16),
        "grade": np.full(n, -1, np.int8),
        "control": np.zeros(n, bool),
        "cause": np.zeros(n, bool),
        "evidence": np.zeros(n, bool),
    }
    return Block(**(given_ | columns))


@given(FLAGS)
def test_rates_are_those_of_scikit_learn(pairs):
    flag = np.array([f for f, _ in pairs])
    target = np.array([t for _, t in pairs], np.int8)
    found = count(flag, target)
    y, p = target[target >= 0] == 1, flag[target >= 0]
    assert found.total == len(y)
    if y.any():
        assert found.recall == pytest.approx(recall_score(y, p))
        assert found.f_beta(1) == pytest.approx(f1_score(y, p))
        assert found.f_beta(0.5) == pytest.approx(fbeta_score(y, p, beta=0.5))
    if p.any():
        assert found.precision == pytest.approx(precision_score(y, p))
    if len(y):
        assert found.accuracy == pytest.approx(accuracy_score(y, p))
    if (~y).any():
        assert found.specificity == pytest.approx(recall_score(~y, ~p))
        assert found.fpr == pytest.approx(1 - found.specificity)


def test_cost_and_saving_by_hand():
    found = Counts(hits=6, misses=4, alarms=2, passes=988)
    assert found.cost(20, 5) == 90
    # Flagging none costs 200, all 4950.
    assert found.saving(20, 5) == pytest.approx(1 - 90 / 200)
    assert Counts(0, 10, 0, 990).saving(20, 5) == 0
    assert Counts(10, 0, 0, 990).saving(20, 5) == 1
    assert math.isnan(Counts(0, 0, 1, 9).saving(20, 5))


@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=80))
def test_brier_is_that_of_scikit_learn(pairs):
    p = np.array([p for p, _ in pairs], np.float32)
    y = np.array([y for _, y in pairs])
    if 0 < y.sum() < len(y):
        assert calibration.brier(p, y) == pytest.approx(brier_score_loss(y, p), abs=1e-6)
    bins = calibration.equal_mass(p, y)
    assert bins.number.sum() == len(p)
    assert np.ptp(bins.number) <= 1
    assert 0 <= calibration.ece(bins) <= 1


def test_reliability_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    p = rng.random(2000).astype(np.float32)
    y = rng.random(2000) < p**2
    share, mean = calibration_curve(y, p, n_bins=10, strategy="uniform")
    bins = calibration.equal_width(p, y)
    assert bins.share == pytest.approx(share)
    assert bins.mean == pytest.approx(mean, abs=1e-6)


def test_ece_by_hand():
    p = np.array([0.1, 0.1, 0.9, 0.9], np.float32)
    y = np.array([False, False, True, False])
    # Two bins: |0.1 - 0| and |0.9 - 0.5|, half of the scans each.
    assert calibration.ece(calibration.equal_mass(p, y, 2)) == pytest.approx(0.25)


def test_delay_counts_from_the_evidence_and_stops_at_the_first_sale():
    chain = [(0, Op.AGGREGATION), (5, Op.WMS_IN), (9, Op.RETAIL_IN), (20, Op.SALE)]
    made = block([chain] * 5)
    evidence, flag = np.zeros(20, bool), np.zeros(20, bool)
    evidence[[1, 5, 9, 15, 17]] = True
    # Told at once; told two scans later by the sale; told before the evidence only; known only at
    # the sale; a control.
    flag[[1, 7, 8, 15, 17]] = True
    control = np.repeat([False, False, False, False, True], 4)
    made = block([chain] * 5, evidence=evidence, control=control, anomaly=np.full(20, 4, np.int8))
    found = delays(made, flag, 4)
    assert found.scans.tolist() == [0, 2, math.inf, 0]
    assert found.hours.tolist() == [0, 15, math.inf, 0]
    assert found.in_time.tolist() == [True, False, False, False]
    assert found.possible.tolist() == [True, True, True, False]
    assert summarise(found) == {
        "trails": 4,
        "caught": 0.75,
        "caught_before_sale": 0.25,
        "possible_before_sale": 0.75,
        "scans_median": 0,
        "scans_p90": pytest.approx(1.6),
        "hours_median": 0,
        "hours_p90": pytest.approx(12),
    }
    assert len(delays(made, flag, 0).scans) == 0
    assert math.isnan(summarise(delays(made, flag, 0))["caught"])


def test_confusion_by_hand():
    target = np.array([[1, 0, 0, 0, 0], [1, 0, 0, 0, 0], [0] * 5, [0, -1, 0, 0, 0]], np.int8)
    flag = np.array([[1, 1, 0, 0, 0], [0] * 5, [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]], bool)
    table = confusion(flag, target)
    assert table[0].tolist() == [0.5, 0.5, 0, 0, 0, 0.5]
    assert table[5].tolist() == [0, 0, 0, 0, 1, 0]
    assert np.isnan(table[1:5]).all()


def with_control(trails, control, anomaly: int, subtype: int, **columns) -> Block:
    """A block whose scans in `control` belong to a control of this type and kind."""
    return block(
        trails,
        target=np.where(control[:, None], -1, 0).repeat(5, axis=1).astype(np.int8),
        anomaly=np.where(control, anomaly, -1).astype(np.int8),
        subtype=np.where(control, subtype, -1).astype(np.int16),
        control=control,
        **columns,
    )


def test_a_control_is_compared_with_its_own_operation():
    # Sales score higher than other scans: that alone must not tell a control that is a sale.
    rng = np.random.default_rng(0)
    trails = [[(0, Op.AGGREGATION), (9, Op.SALE)]] * 4000
    control = np.repeat(np.arange(4000) < 200, 2)
    sale = np.tile([False, True], 4000)
    made = with_control(
        trails,
        control,
        anomaly=1,
        subtype=7,
        cause=control & sale,
        lot=np.arange(8000) // 80,
    )
    score = (rng.random(8000) + sale).astype(np.float32)
    found = control_auc(made, score, 1, 7, 300, 0)
    assert 0.45 < found.auc < 0.55
    assert found.low < found.auc < found.high
    assert found.trails == 200
    leaked = control_auc(made, score + made.control, 1, 7, 300, 0)
    assert leaked.auc == 1
    assert math.isnan(control_auc(made, score, 1, 8, 300, 0).auc)
    # From the evidence on it may be told: only what comes before is asked.
    known = replace(made, evidence=control & sale, cause=control)
    assert 0.4 < control_auc(known, score + sale, 1, 7, 300, 0).auc < 0.6


def test_what_tells_one_item_of_a_box_tells_of_its_mates():
    rng = np.random.default_rng(2)
    trails = [[(0, Op.AGGREGATION), (9, Op.WMS_IN), (20, Op.WMS_OUT)]] * 3000
    control = np.repeat(np.arange(3000) < 300, 3)
    second, last = np.tile([False, True, False], 3000), np.tile([False, False, True], 3000)
    of_one_item = np.arange(9000) % 90 < 3
    made = with_control(
        trails,
        control,
        anomaly=1,
        subtype=7,
        cause=control & ~second,
        evidence=control & second & of_one_item,
        lot=np.arange(9000) // 90,
    )
    score = rng.random(9000).astype(np.float32)
    found = control_auc(made, score + (control & last), 1, 7, 300, 0)
    assert 0.4 < found.auc < 0.6
    assert found.trails == 300


def test_a_quick_lorry_is_compared_with_other_quick_lorries():
    rng = np.random.default_rng(1)
    trails = [[(0, Op.WMS_OUT), (9, Op.HUB_IN)]] * 8000
    arrival = np.tile([False, True], 8000)
    control = np.repeat(np.arange(8000) < 200, 2)
    pace = np.where(arrival, rng.uniform(0.6, 1.4, 16_000), np.nan).astype(np.float32)
    pace[control & arrival] = rng.uniform(0.6, 0.8, 200)
    made = with_control(
        trails,
        control,
        anomaly=4,
        subtype=9,
        cause=control & arrival,
        pace=pace,
    )
    score = (2 - np.nan_to_num(pace) + 0.05 * rng.random(16_000)).astype(np.float32)
    assert 0.45 < control_auc(made, score, 4, 9, 300, 0).auc < 0.55
    assert control_auc(made, score + made.control, 4, 9, 300, 0).auc == 1
    elsewhere = replace(made, anomaly=np.where(control, 2, -1).astype(np.int8))
    assert control_auc(elsewhere, score, 2, 9, 300, 0).auc > 0.8


def test_boxes_are_one_lot_second_and_operation():
    trails = [[(0, 0), (5, 1)], [(0, 0), (5, 1)], [(0, 0), (6, 1)], [(0, 0), (5, 1)]]
    made = block(trails, lot=np.array([1, 1, 1, 1, 1, 1, 2, 2]))
    number = boxes(made)
    assert number[0] == number[2] == number[4] != number[6]
    assert number[1] == number[3] != number[5]
    assert len(set(number.tolist())) == 5


def test_business_by_hand():
    # Two shipments of two items, then each item's sale; one item is a fake, told at its sale's
    # shipment; the other shipment is flagged wrongly.
    chain = [(0, Op.AGGREGATION), (24, Op.WMS_IN), (48, Op.SALE)]
    late = [(1, Op.AGGREGATION), (25, Op.WMS_IN), (49, Op.SALE)]
    target = np.zeros((12, 5), np.int8)
    target[1:3, 0] = 1
    flag = np.zeros((12, 5), bool)
    flag[[1, 4, 10], 0] = True
    evidence = np.zeros(12, bool)
    evidence[1] = True
    made = block(
        [chain, chain, late, late],
        target=target,
        anomaly=np.repeat([0, -1, -1, -1], 3).astype(np.int8),
        evidence=evidence,
        lot=np.repeat([1, 1, 2, 2], 3),
    )
    found = business(made, flag, SETTINGS)
    assert found["shipments"] == 6
    assert found["days"] == pytest.approx(49 / 24)
    assert found["alerts_a_day"] == pytest.approx(2 / (49 / 24))
    assert found["alerts_a_day_by_scan"] == pytest.approx(3 / (49 / 24))
    assert found["minutes_a_true_hit"] == 6
    assert found["shipments_blocked_wrongly"] == 1
    assert found["share_blocked_wrongly"] == pytest.approx(1 / 4)
    assert found["value_saved"] == found["value_at_stake"] == 50
    counts = any_counts(flag, made)
    assert (counts.hits, counts.misses, counts.alarms, counts.passes) == (1, 1, 2, 8)
    at = found["at_prevalence"]
    expected = 12 / (49 / 24) * (0.02 * 0.5 + 0.98 * 0.2)
    assert at["alerts_a_day_at_2%"] == pytest.approx(expected)
    assert at["alerts_a_day_at_2%"] == alerts_a_day(counts, 12 / (49 / 24), 0.02)
    assert at["minutes_a_true_hit_at_2%"] == pytest.approx(3 * (0.01 + 0.196) / 0.01)


def test_nobody_is_alerted_by_nothing():
    made = block([[(0, 0)]])
    found = business(made, np.zeros((1, 5), bool), SETTINGS)
    assert found["alerts_a_day"] == 0
    assert math.isnan(found["minutes_a_true_hit"])
    assert percent(0.005) == "0.5%"
