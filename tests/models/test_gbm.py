"""Boosting told that faster is never less of a jump keeps to it, whatever it has seen."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

from models import gbm
from tests.models.small_bundles import ROOT
from trail.features import FEATURES
from trail.scan import ANOMALIES, Anomaly

SETTINGS = {**yaml.safe_load((ROOT / "params.yaml").read_text())["train"]["gbm"], "trees": 40}
FASTER = FEATURES.index("speed_kmh_log")


def drawn(seed, scans=6000):
    """The fastest third are jumps, but for the very fastest."""
    rng = np.random.default_rng(seed)
    features = rng.uniform(0, 1, (scans, len(FEATURES))).astype(np.float32)
    target = np.zeros((scans, len(ANOMALIES)), np.int8)
    speed = features[:, FASTER]
    target[:, Anomaly.JUMP] = target[:, Anomaly.DUP] = (speed > 0.6) & (speed < 0.9)
    return features, target


def told(folder, **changes):
    """Log-odds (50, 5) of ever faster scans that are alike otherwise."""
    gbm.fit(*drawn(1), *drawn(2), {**SETTINGS, **changes}, folder)
    features = np.full((50, len(FEATURES)), 0.5, np.float32)
    features[:, FASTER] = np.linspace(0, 1, 50)
    return gbm.logits(folder, features)


@pytest.mark.parametrize("monotone", [False, True])
def test_faster_is_never_less_of_a_jump_if_so_wanted(tmp_path, monotone):
    found = told(tmp_path, monotone=monotone)
    rising = np.diff(found, axis=0) >= 0
    assert rising[:, Anomaly.JUMP].all() == monotone
    assert not rising[:, Anomaly.DUP].all(), "of a duplicate it may be less"
    assert found[:, Anomaly.JUMP].max() - found[0, Anomaly.JUMP] > 3


def test_what_says_how_fast_goods_came_is_a_feature():
    assert set(gbm.FASTER) <= set(FEATURES)
