"""Thresholds: cheapest, provably rare, and exact on ties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from pipelines import params
from pipelines.measures.lots import by_lot, rate_upper, resample
from pipelines.measures.settings import Settings
from pipelines.measures.thresholds import NEVER, choose, fpr_upper
from trail.scan import ANOMALIES

SECTION = {
    "fpr_bound": 0.01,
    "bootstrap": 300,
    "seed": 3,
    "betas": {"epcFake": 1, "epcDup": 1, "locErr": 0.5, "evtOrderErr": 1, "jump": 2},
    "prevalences": [0.001, 0.005, 0.02],
    "costs": {
        "epcFake": {"miss": 20, "false_alarm": 20},
        "epcDup": {"miss": 20, "false_alarm": 20},
        "locErr": {"miss": 5, "false_alarm": 20},
        "evtOrderErr": {"miss": 20, "false_alarm": 20},
        "jump": {"miss": 20, "false_alarm": 5},
    },
    "value_of_product": 50,
    "analyst_minutes_per_alert": 3,
    "rule_flag": 50,
}
SETTINGS = Settings.read(SECTION)


def _columns(score, target):
    """The same score and target for each of the five types."""
    return (
        np.repeat(np.asarray(score, dtype=np.float32)[:, None], 5, axis=1),
        np.repeat(np.asarray(target, dtype=np.int8)[:, None], 5, axis=1),
    )


def _noisy(seed: int, lots: int = 60, size: int = 200):
    rng = np.random.default_rng(seed)
    lot = np.repeat(np.arange(lots), size)
    target = (rng.random((lots * size, 5)) < 0.02).astype(np.int8)
    score = rng.beta(1, 8, target.shape) + 0.4 * target
    return np.clip(score, 0, 1).astype(np.float32), target, lot


def test_no_cheaper_threshold_keeps_the_bound():
    scores, target, lot = _noisy(0)
    chosen = choose(scores, target, lot, SETTINGS)
    draws = resample(lot, SETTINGS.bootstrap, SETTINGS.seed)
    for k, name in enumerate(ANOMALIES):
        best = chosen.cost[name]
        for t in np.linspace(0.01, 1, 80):
            flag = scores[:, k] >= np.float32(t)
            honest, bad = target[:, k] == 0, target[:, k] == 1
            cost = SETTINGS.miss[name] * (bad & ~flag).sum()
            cost = (cost + SETTINGS.false_alarm[name] * (honest & flag).sum()) / len(lot)
            _, upper = fpr_upper(scores[:, k], target[:, k], draws, t)
            # One error of the cheaper kind decides nothing.
            error = min(SETTINGS.miss[name], SETTINGS.false_alarm[name]) / len(lot)
            assert upper > SETTINGS.fpr_bound or cost >= best - error - 1e-12


@pytest.mark.parametrize(("strange", "threshold"), [(0, 0.48), (1, 0.355), (2, 0.825)])
def test_one_scan_more_or_less_decides_nothing(strange, threshold):
    """Anomalies at 0.95, strange honest scans at 0.7, all others at 0.01."""
    score = np.full(2000, 0.01)
    score[:20], score[20 : 20 + strange] = 0.95, 0.7
    scores, target = _columns(score, np.arange(2000) < 20)
    value = choose(scores, target, np.arange(2000) // 20, SETTINGS).value
    # For probabilities 0.5 were right, and 0.2 where a miss costs four times as much.
    assert value["epcDup"] == pytest.approx(threshold)
    assert value["jump"] == pytest.approx(threshold)


def test_figures_are_those_of_the_threshold():
    scores, target, lot = _noisy(1)
    chosen = choose(scores, target, lot, SETTINGS)
    draws = resample(lot, SETTINGS.bootstrap, SETTINGS.seed)
    for k, name in enumerate(ANOMALIES):
        rate, upper = fpr_upper(scores[:, k], target[:, k], draws, chosen.value[name])
        assert rate == pytest.approx(chosen.fpr[name])
        assert upper == pytest.approx(chosen.fpr_upper95[name])
        assert upper <= SETTINGS.fpr_bound
        flag = scores[:, k] >= np.float32(chosen.value[name])
        assert flag[target[:, k] == 1].mean() == pytest.approx(chosen.recall[name])


def test_false_alarms_in_one_lot_widen_the_bound():
    lot = np.repeat(np.arange(100), 100)
    spread, packed = np.zeros(10_000, np.float32), np.zeros(10_000, np.float32)
    spread[::200] = 1
    packed[:50] = 1
    honest = np.zeros(10_000, np.int8)
    draws = resample(lot, 1000, 0)
    assert fpr_upper(spread, honest, draws, 0.5)[0] == fpr_upper(packed, honest, draws, 0.5)[0]
    assert fpr_upper(packed, honest, draws, 0.5)[1] > 2 * fpr_upper(spread, honest, draws, 0.5)[1]


def test_no_false_alarm_is_not_certainty():
    weights = resample(np.arange(50), 100, 0).weights
    bound = rate_upper(np.zeros(50), np.full(50, 10.0), weights)
    assert bound == pytest.approx(beta.ppf(0.95, 1, 500))
    assert rate_upper(np.zeros(50), np.zeros(50), weights) == 1.0


def test_a_useless_score_flags_nothing():
    rng = np.random.default_rng(0)
    scores, target = _columns(rng.random(5000), rng.random(5000) < 0.01)
    assert set(choose(scores, target, np.arange(5000) // 50, SETTINGS).value.values()) == {NEVER}


def test_without_anomalous_scans_the_bound_decides():
    scores, target = _columns(np.linspace(0, 1, 10_000), np.zeros(10_000))
    chosen = choose(scores, target, np.arange(10_000) % 100, SETTINGS)
    assert 0.985 < chosen.value["jump"] < 1
    assert 0 < chosen.fpr_upper95["jump"] <= 0.01


def test_nothing_counted_flags_nothing():
    scores, target = _columns(np.ones(10), np.full(10, -1))
    assert choose(scores, target, np.zeros(10, np.int64), SETTINGS).value["jump"] == NEVER


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40))
def test_equal_scores_are_flagged_together(pairs):
    score = np.array([s for s, _ in pairs], np.float32) / np.float32(7)
    scores, target = _columns(score, [t for _, t in pairs])
    chosen = choose(
        scores, target, np.arange(len(pairs)), Settings.read(SECTION | {"fpr_bound": 1})
    )
    for k, name in enumerate(ANOMALIES):
        flag = scores[:, k] >= np.float32(chosen.value[name])
        bad = target[:, k] == 1
        if bad.any():
            assert flag[bad].mean() == pytest.approx(chosen.recall[name])
        if (~bad).any():
            assert flag[~bad].mean() == pytest.approx(chosen.fpr[name])


def test_by_lot_counts():
    assert by_lot(np.array([0, 2, 2]), 4).tolist() == [1, 0, 2, 0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"fpr_bound": 0}, "fpr_bound"),
        ({"bootstrap": 0}, "bootstrap"),
        ({"prevalences": [2]}, "prevalences"),
        ({"betas": SECTION["betas"] | {"jump": 1}}, "jump"),
    ],
)
def test_settings_name_what_is_wrong(change, word):
    with pytest.raises(ValueError, match=word):
        Settings.read(SECTION | change)


def test_params_of_the_project_are_sound():
    settings = Settings.read(params.load(Path(__file__).parents[2] / "params.yaml")["evaluate"])
    assert settings.bootstrap >= 2000
    assert settings.betas["locErr"] == 0.5
    assert settings.betas["jump"] == 2
