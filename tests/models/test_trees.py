"""Boosted trees as ONNX and as boxes say what LightGBM says."""

from __future__ import annotations

from itertools import permutations

import lightgbm as lgb
import numpy as np
import onnxruntime as ort
import pytest

from models import gbm, trees
from models.trees import Boxes
from tests.models.small_bundles import BOOSTING
from trail.features import FEATURES
from trail.scan import ANOMALIES


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A folder of boosters of two anomalies, and features that they were grown on."""
    folder = tmp_path_factory.mktemp("trees") / "gbm"
    rng = np.random.default_rng(0)
    features = rng.normal(size=(4000, len(FEATURES))).astype(np.float32)
    target = np.zeros((4000, 5), np.int8)
    target[:, 0] = (features[:, 3] > 1) & (features[:, 7] < 0.5)
    target[:, 4] = np.abs(features[:, 2]) + features[:, 5] > 2
    gbm.fit(features, target, features, target, BOOSTING, folder)
    return folder, features


def session(path):
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def test_the_export_says_what_lightgbm_says(grown, tmp_path):
    folder, features = grown
    assert trees.export(folder, tmp_path / "gbm.onnx") <= trees.TOLERANCE
    for some in (features, features[:1], features[:0]):
        found = session(tmp_path / "gbm.onnx").run(None, {"features": some})[0]
        assert found.shape == (len(some), len(ANOMALIES))
        assert np.allclose(found, gbm.logits(folder, some), atol=1e-5)
    assert (found[:, 1:4] == trees.ABSENT).all()


def test_an_export_that_differs_is_refused(grown, tmp_path, monkeypatch):
    folder, _ = grown
    right = trees._question
    monkeypatch.setattr(trees, "_question", lambda node: (right(node)[0], right(node)[1] + 0.1))
    with pytest.raises(RuntimeError, match="differs from LightGBM"):
        trees.export(folder, tmp_path / "gbm.onnx")
    assert not (tmp_path / "gbm.onnx").exists()


def test_a_category_is_refused():
    with pytest.raises(ValueError, match="=="):
        trees._question({"decision_type": "==", "threshold": "1||2", "split_feature": 0})


def test_thresholds_keep_the_way_of_features_in_32_bits():
    for cut in np.random.default_rng(0).normal(size=200):
        node = {"decision_type": "<=", "threshold": cut, "split_feature": 4}
        feature, short = trees._question(node)
        near = np.float32(cut)
        some = [np.nextafter(near, np.float32(-9)), near, np.nextafter(near, np.float32(9))]
        assert feature == 4
        assert [float(x) <= cut for x in some] == [bool(x <= np.float32(short)) for x in some]


def test_boxes_hold_what_their_leaves_say(grown):
    folder, features = grown
    for booster in trees.boosters(folder).values():
        boxes = Boxes.of(booster)
        for row in features[:20]:
            inside = (row[boxes.feature] > boxes.above) & (row[boxes.feature] <= boxes.upto)
            left = np.bincount(boxes.leaf[~inside], minlength=len(boxes.value)) == 0
            said = booster.predict(row[None], raw_score=True)[0]
            assert boxes.value[left].sum() == pytest.approx(said, abs=1e-9)
            assert left.sum() == booster.num_trees()


def test_worths_add_up_to_the_difference(grown):
    folder, features = grown
    baseline = np.zeros(len(FEATURES), np.float32)
    for booster in trees.boosters(folder).values():
        boxes = Boxes.of(booster)
        for row in features[:20]:
            difference = np.diff(booster.predict(np.stack([baseline, row]), raw_score=True))[0]
            assert boxes.worth(row, baseline).sum() == pytest.approx(difference, abs=1e-9)
        assert not boxes.worth(baseline, baseline).any()


def test_worths_are_shapley_values():
    """Against their definition: the mean over all orders in which features turn."""
    rng = np.random.default_rng(1)
    features = rng.integers(0, 4, size=(500, 4)).astype(np.float32)
    target = features[:, 0] * features[:, 1] - features[:, 2] + (features[:, 3] > 1)
    options = {"verbosity": -1, "num_leaves": 12, "min_data_in_leaf": 5}
    booster = lgb.train(options, lgb.Dataset(features, target), num_boost_round=5)
    boxes = Boxes.of(booster)
    for row, baseline in zip(features[:10], features[10:20], strict=True):
        expected = np.zeros(4)
        for order in permutations(range(4)):
            at = baseline.copy()
            for feature in order:
                before = booster.predict(at[None], raw_score=True)[0]
                at[feature] = row[feature]
                expected[feature] += (booster.predict(at[None], raw_score=True)[0] - before) / 24
        assert np.allclose(boxes.worth(row, baseline), expected, atol=1e-9)
