"""A bundle is refused when anything about it is not what it says."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from models import bundle, gbm, lstm, oneclass, onnx
from models.bundle import Bundle, BundleError, graded
from models.calibration import Calibration
from models.scoring import registry_that_applies, score
from tests.trail.small import HONEST, REGISTRY, SITES, code, scans_of
from trail import network
from trail.facts import previous_of
from trail.features import FEATURES
from trail.registry import Registry
from trail.scan import ANOMALIES, Op
from trail.trails import sort
from trail.verdict import Source


def honest():
    return scans_of([(code(lot=1, serial=s), HONEST) for s in range(1, 41)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An untrained bundle: what is tested here does not depend on what it learned."""
    folder = tmp_path_factory.mktemp("bundle")
    torch.manual_seed(0)
    net = lstm.TrailLSTM(lstm.Shape(len(FEATURES), hidden=8)).eval()
    lstm.save(net, folder / "lstm.safetensors")
    (folder / "lstm.json").write_text(json.dumps(net.shape.to_json()))
    assert onnx.export(net, folder / "lstm.onnx") <= 1e-5
    trails = sort(honest())
    learned = network.fit(trails.scans, previous_of(trails.starts), SITES)
    (folder / "network.json").write_text(json.dumps(learned.to_json()))
    low = Calibration(np.ones(5), np.full(5, -9.0))
    (folder / "calibration.json").write_text(json.dumps({"lstm": low.to_json()}))
    (folder / "thresholds.json").write_text(json.dumps({"lstm": dict.fromkeys(ANOMALIES, 0.4)}))
    bundle.seal(folder)
    return folder


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def test_a_sealed_bundle_loads(folder):
    assert Bundle(folder).digest == bundle.verify(folder)


def test_a_changed_file_is_refused(copy):
    path = copy / "thresholds.json"
    path.write_text(path.read_text().replace("0.4", "0.5"))
    with pytest.raises(BundleError, match="was changed"):
        Bundle(copy)


def test_an_added_file_is_refused(copy):
    (copy / "extra").write_text("x")
    with pytest.raises(BundleError, match="was changed"):
        Bundle(copy)


@pytest.mark.parametrize("name", ["digest.json", "features.json"])
def test_a_missing_seal_is_refused(copy, name):
    (copy / name).unlink()
    with pytest.raises(BundleError, match=name):
        Bundle(copy)


def reseal(folder, listed):
    (folder / "features.json").write_text(json.dumps(listed))
    (folder / "digest.json").write_text(json.dumps({"sha256": bundle._digest(folder)}))


def test_other_features_are_refused_by_name(copy):
    reseal(copy, {"version": 1, "features": [*FEATURES[:-1], "phase_of_moon"]})
    with pytest.raises(BundleError, match="phase_of_moon"):
        Bundle(copy)


def test_another_order_of_features_is_refused(copy):
    reseal(copy, {"version": 1, "features": list(reversed(FEATURES))})
    with pytest.raises(BundleError, match="order"):
        Bundle(copy)


def test_another_version_of_features_is_refused(copy):
    reseal(copy, {"version": 99, "features": list(FEATURES)})
    with pytest.raises(BundleError, match="version 99"):
        Bundle(copy)


def test_weights_without_an_export_are_refused(copy):
    (copy / "lstm.onnx").unlink()
    bundle.seal(copy)
    with pytest.raises(BundleError, match="register"):
        Bundle(copy)


def test_scores_reach_fifty_just_at_the_threshold():
    threshold = np.array([0.2, 0.5, 0.9, 1.01, 0.01], np.float32)
    at = graded(threshold[None, :].clip(max=1), threshold)[0]
    below = graded((threshold - 1e-3)[None, :].clip(max=1), threshold)[0]
    assert (at[[0, 1, 2, 4]] == 50).all()
    assert at[3] < 50
    assert (below < 50).all()
    many = np.linspace(0, 1, 101, dtype=np.float32)[:, None].repeat(5, axis=1)
    assert (np.diff(graded(many, threshold), axis=0) >= 0).all()
    assert graded(many, threshold).max() <= 100


def test_a_hard_reason_outranks_the_model_and_says_so(folder):
    scans = scans_of(
        [*((code(lot=1, serial=s), HONEST) for s in range(1, 41)), ("rubbish", HONEST[:2])]
    )
    found = score(Bundle(folder), scans, SITES, REGISTRY)
    assert found.flag[-2:, 0].all()
    assert found.score[-2:, 0].min() >= 90
    assert found.source[-1] == Source.RULES
    assert "malformed" in found.evidence[-1]
    assert not found.flag[:-2].any()
    assert set(found.evidence[:-2]) == {""}
    assert found.counts() == {name: (2 if name == "epcFake" else 0) for name in ANOMALIES}


def test_a_lone_first_sighting_is_judged_by_the_rules(folder):
    scans = scans_of([(code(lot=77), [(Op.WHOLESALE_IN, 4, 0.0)])])
    assert score(Bundle(folder), scans, SITES, Registry.none()).source == [Source.COLD]


def test_a_registry_applies_only_at_home():
    assert registry_that_applies(REGISTRY, honest(), SITES).at_hand
    elsewhere = Registry.of([1], [1])
    assert not registry_that_applies(elsewhere, honest(), SITES).at_hand
    away = SITES.with_unknown([])
    away.known[:] = False
    assert not registry_that_applies(REGISTRY, honest(), away).at_hand
    away.known[:] = SITES.tier >= 0


def test_calibration_fits_and_survives_json():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 5)).astype(np.float32)
    p = 1 / (1 + np.exp(-(2 * x - 1)))
    target = (rng.random((4000, 5)) < p).astype(np.int8)
    target[:100] = -1
    target[:, 4] = 0
    fitted = Calibration.fit(x, target)
    assert fitted.slope[:4] == pytest.approx(2, abs=0.25)
    assert fitted.intercept[:4] == pytest.approx(-1, abs=0.2)
    assert (fitted.slope[4], fitted.intercept[4]) == (1, 0)
    again = Calibration.from_json(json.loads(json.dumps(fitted.to_json())))
    assert np.array_equal(again(x), fitted(x))


def test_calibration_keeps_the_order_of_scans():
    x = np.linspace(-5, 5, 50, dtype=np.float32)[:, None].repeat(5, axis=1)
    target = (x < 0).astype(np.int8)
    assert (np.diff(Calibration.fit(x, target)(x), axis=0) >= 0).all()


def test_one_class_svm_finds_the_strange(tmp_path):
    rng = np.random.default_rng(0)
    inner = rng.normal(size=(2000, 6)).astype(np.float32)
    settings = {"seed": 1, "scans": 2000, "components": 100, "gamma": 1.0, "nu": 0.05}
    oneclass.fit(inner, settings, tmp_path / "svm.safetensors")
    far = oneclass.novelty(tmp_path / "svm.safetensors", inner[:200] + 6)
    near = oneclass.novelty(tmp_path / "svm.safetensors", inner)
    assert np.median(far) > np.quantile(near, 0.95)


def test_boosting_is_written_as_text_and_learns(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3000, len(FEATURES))).astype(np.float32)
    target = np.zeros((3000, 5), np.int8)
    target[:, 0] = x[:, 3] > 1
    target[:50] = -1
    settings = {
        "threads": 1,
        "seed": 1,
        "learning_rate": 0.1,
        "leaves": 7,
        "min_leaf": 20,
        "min_weight": 1.0,
        "feature_share": 1.0,
        "row_share": 1.0,
        "l2": 1.0,
        "trees": 30,
        "patience": 10,
    }
    trees = gbm.fit(x, target, x, target, settings, tmp_path)
    assert trees["epcFake"] > 0
    assert trees["jump"] == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epcFake.txt"]
    logits = gbm.logits(tmp_path, x)
    assert logits[target[:, 0] == 1, 0].min() >= logits[target[:, 0] == 0, 0].max()
    assert logits[target[:, 0] == 1, 0].mean() > logits[target[:, 0] == 0, 0].mean()
    assert (logits[:, 4] == -20).all()
