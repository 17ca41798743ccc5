"""The model alone and the one-class SVM alone give verdicts of the shape that all share."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from models import bundle, predict
from models.bundle import Bundle, BundleError
from models.calibration import Calibration
from tests.models.small_bundles import encoded, small_bundle, some_scans


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Bundle(small_bundle(tmp_path_factory.mktemp("alone") / "bundle"))


@pytest.fixture(scope="module")
def asked(small):
    return encoded(some_scans(7), small.network)


def test_the_model_alone_differs_from_the_verdict_only_where_a_rule_spoke(small, asked):
    alone = small.judge_model(asked.features, asked.offsets)
    both = small.judge(asked.features, asked.offsets, asked.findings)
    ruled = (asked.findings.hard > 0) | both.cold[:, None]
    assert np.array_equal(alone.score[~ruled], both.score[~ruled])
    assert np.array_equal(alone.model, both.model)
    assert alone.flag.any() and not alone.by_rule.any() and not alone.cold.any()


def test_the_svm_sees_each_scan_by_itself(small, asked):
    order = np.random.default_rng(0).permutation(len(asked.features))
    found = small.judge_svm(asked.features)
    assert np.allclose(small.judge_svm(asked.features[order]).score, found.score[order], atol=1e-3)
    assert np.array_equal(found.flag, found.score >= 50)


def test_the_svm_gives_its_calibrated_novelty(small, asked):
    logits = predict.svm_logits(small.folder, asked.features)
    even = Calibration(np.ones(5), np.zeros(5))
    assert np.allclose(small.judge_svm(asked.features).model, even(logits))


def test_an_anomaly_with_a_threshold_beyond_reach_is_never_flagged(small, asked, tmp_path):
    copy = shutil.copytree(small.folder, tmp_path / "bundle")
    path = copy / "thresholds.json"
    path.write_text(path.read_text().replace('"epcDup": 0.5', '"epcDup": 1.01'))
    bundle.seal(copy)
    high = np.full_like(asked.features, 1e4)
    found = Bundle(copy).judge_svm(high)
    assert not found.flag[:, 1].any()
    assert np.array_equal(found.flag[:, 0], small.judge_svm(high).flag[:, 0])


def test_a_bundle_without_an_svm_says_so(small, asked, tmp_path):
    copy = shutil.copytree(small.folder, tmp_path / "bundle")
    (copy / "svm.safetensors").unlink()
    bundle.seal(copy)
    with pytest.raises(BundleError, match="svm"):
        Bundle(copy).judge_svm(asked.features)
