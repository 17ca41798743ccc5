"""Rankings and their lot bootstrap, against scikit-learn and scipy."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from pipelines.measures.bootstrap import ap_replicates, holm, interval, macro
from pipelines.measures.lots import resample
from pipelines.measures.ranking import (
    average_precision,
    cut_at_fpr,
    places,
    precision_at_prevalence,
    precision_recall,
    recall_at_fpr,
)

# Few distinct scores, so that ties are the rule; lots of any size.
SCANS = st.lists(
    st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 4)), min_size=1, max_size=60
)


def _arrays(scans):
    score = np.array([s for s, _, _ in scans], np.float32) / np.float32(9)
    return score, np.array([p for _, p, _ in scans]), np.array([lot for _, _, lot in scans])


@given(SCANS)
def test_average_precision_is_that_of_scikit_learn(scans):
    score, positive, _ = _arrays(scans)
    if not positive.any():
        assert math.isnan(average_precision(score, positive))
        return
    assert average_precision(score, positive) == pytest.approx(
        average_precision_score(positive, score)
    )


@given(SCANS)
def test_precision_and_recall_are_those_of_scikit_learn(scans):
    score, positive, _ = _arrays(scans)
    if not positive.any():
        return
    recall, precision = precision_recall(score, positive)
    expected = precision_recall_curve(positive, score)
    assert precision == pytest.approx(expected[0][-2::-1])
    assert recall == pytest.approx(expected[1][-2::-1])


@given(SCANS, st.integers(0, 1000))
@settings(deadline=None)
def test_each_replicate_is_the_weighted_average_precision(scans, seed):
    score, positive, lot = _arrays(scans)
    draws = resample(lot, 8, seed)
    replicates = ap_replicates(score, positive, draws, draws.code)
    for b in range(8):
        weight = draws.weights[draws.code, b]
        if not positive.any() or weight[positive].sum() == 0:
            assert math.isnan(replicates[b])
        else:
            expected = average_precision_score(positive, score, sample_weight=weight)
            assert replicates[b] == pytest.approx(expected, rel=1e-5)


def test_replicates_agree_on_a_large_part_and_take_a_second():
    rng = np.random.default_rng(0)
    lot = np.repeat(np.arange(200), 1000)
    positive = rng.random(len(lot)) < 0.01
    score = np.clip(rng.normal(0.2, 0.1, len(lot)) + 0.3 * positive, 0, 1).astype(np.float32)
    draws = resample(lot, 2000, 1)
    start = time.process_time()
    replicates = ap_replicates(score, positive, draws, draws.code)
    # 0.3 s of processor time on one core; twenty of these make an evaluation.
    assert time.process_time() - start < 3
    for b in (0, 999, 1999):
        weight = draws.weights[draws.code, b]
        expected = average_precision_score(positive, score, sample_weight=weight)
        assert replicates[b] == pytest.approx(expected, rel=1e-6)


def test_resamples_draw_as_many_lots_as_there_are():
    draws = resample(np.array([5, 5, 9, 7]), 50, 0)
    assert draws.code.tolist() == [0, 0, 2, 1]
    assert (draws.weights.sum(axis=0) == 3).all()
    assert (draws.weights == resample(np.array([5, 5, 9, 7]), 50, 0).weights).all()
    assert resample(np.zeros(0, np.int64), 4, 0).lots == 0


@given(SCANS, st.sampled_from([0.0, 0.001, 0.05, 0.3, 1.0]))
def test_recall_at_a_rate_is_a_point_of_the_roc_curve(scans, fpr):
    score, positive, _ = _arrays(scans)
    if not positive.any() or positive.all():
        return
    rates, recalls, _ = roc_curve(positive, score, drop_intermediate=False)
    expected = recalls[rates <= fpr + 1e-12].max()
    assert recall_at_fpr(score[positive], score[~positive], fpr) == pytest.approx(expected)


def test_cut_without_honest_scans_lets_all_pass():
    assert cut_at_fpr(np.zeros(0, np.float32), 0.01) == -math.inf
    assert math.isnan(recall_at_fpr(np.zeros(0, np.float32), np.ones(3, np.float32), 0.01))


@given(SCANS)
def test_places_average_to_the_auc(scans):
    score, positive, _ = _arrays(scans)
    if not positive.any() or positive.all():
        return
    auc = mannwhitneyu(score[positive], score[~positive]).statistic
    auc /= positive.sum() * (~positive).sum()
    assert places(score[positive], score[~positive]).mean() == pytest.approx(auc)


def test_precision_at_prevalence_is_bayes_rule():
    assert precision_at_prevalence(0.9, 0.01, 0.02) == pytest.approx(0.018 / (0.018 + 0.0098))
    assert precision_at_prevalence(0.9, 0.0, 0.02) == 1
    assert math.isnan(precision_at_prevalence(0.0, 0.0, 0.02))


def test_interval_and_p_value_of_a_difference():
    found = interval(0.5, np.linspace(-0.1, 1.1, 1001))
    assert (found.low, found.high) == (pytest.approx(-0.07), pytest.approx(1.07))
    assert found.p_value == pytest.approx(2 * (84 + 1) / 1002, rel=0.02)
    assert interval(0.5, np.full(1000, 0.5)).p_value == pytest.approx(2 / 1001)
    assert math.isnan(interval(math.nan, np.full(3, math.nan)).low)


def test_paired_resamples_see_a_difference_that_unpaired_ones_would_not():
    rng = np.random.default_rng(3)
    lot = np.repeat(np.arange(40), 50)
    positive = rng.random(len(lot)) < 0.05
    hard = rng.normal(0, 2, 40)[lot]
    weak = (rng.normal(0, 1, len(lot)) + positive * (2.5 + hard)).astype(np.float32)
    better = (weak + 0.6 * positive).astype(np.float32)
    draws = resample(lot, 1000, 0)
    a = ap_replicates(weak, positive, draws, draws.code)
    b = ap_replicates(better, positive, draws, draws.code)
    assert interval(0.1, b - a).p_value < 0.01
    assert np.std(b - a) < 0.5 * np.std(b)


def test_macro_is_the_mean_of_what_there_is():
    found = macro([np.array([0.2, math.nan, math.nan]), np.array([0.4, 0.6, math.nan])])
    assert found[:2].tolist() == pytest.approx([0.3, 0.6])
    assert math.isnan(found[2])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert math.isnan(holm([math.nan, 0.01])[0])
    assert holm([math.nan, 0.01])[1] == pytest.approx(0.01)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_never_lowers(p_values):
    adjusted = holm(p_values)
    assert all(a >= p for a, p in zip(adjusted, p_values, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()
