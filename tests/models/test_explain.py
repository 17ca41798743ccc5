"""Attributions add up, name what matters, and are of the network that gave the verdict."""

from __future__ import annotations

import json
import shutil
from statistics import mode

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from models import bundle
from models.bundle import Bundle, BundleError
from models.explain import FIRST_STEPS, SMALL_ERROR, Explainer
from models.lstm import Shape, TrailLSTM, save
from models.readable import READABLE
from models.stack import Stack
from models.trees import Boxes, boosters
from tests.models.small_bundles import encoded, small_bundle, some_scans
from trail.features import FEATURES
from trail.scan import ANOMALIES, Anomaly


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return Bundle(small_bundle(tmp_path_factory.mktemp("explain") / "bundle"))


@pytest.fixture(scope="module")
def explainer(small):
    return Explainer(small.folder, small.digest)


@pytest.fixture(scope="module")
def asked(small):
    return encoded(some_scans(7), small.network)


@pytest.fixture(scope="module")
def flagged(small, asked):
    """Trails up to a scan that the network flags, the column, and the probability."""
    probability = small.probabilities(asked.features, asked.offsets)
    found = []
    for row, column in zip(*np.nonzero(probability >= 0.5), strict=True):
        start = asked.offsets[np.searchsorted(asked.offsets, row, side="right") - 1]
        trail = asked.features[start : row + 1]
        found.append((trail, int(column), float(probability[row, column])))
    assert len({column for _, column, _ in found}) >= 3
    return found


@pytest.mark.parametrize("baseline", ["mean", "zeros"])
def test_the_parts_add_up_to_the_difference(explainer, flagged, baseline):
    errors = []
    for trail, column, _ in flagged:
        found = explainer.attribute(trail, column, baseline)
        assert found.parts.shape == trail.shape
        difference = found.log_odds - found.baseline_log_odds
        assert found.error == pytest.approx(
            abs(found.parts.sum() - difference) / max(abs(difference), 1e-3), abs=1e-4
        )
        errors.append(found.error)
    assert np.quantile(errors, 0.95) < 0.05


def test_the_log_odds_are_those_of_the_verdict(explainer, flagged):
    """The small bundle is calibrated by nothing, so that its probability is theirs."""
    for trail, column, probability in flagged:
        log_odds = explainer.attribute(trail, column).log_odds
        assert 1 / (1 + np.exp(-log_odds)) == pytest.approx(probability, abs=1e-4)


def test_the_log_odds_of_many_trails_are_those_of_each(explainer, flagged):
    size = mode(len(trail) for trail, _, _ in flagged)
    alike = [(trail, column) for trail, column, _ in flagged if len(trail) == size]
    assert len(alike) > 1
    found = explainer.log_odds(np.stack([trail for trail, _ in alike]))
    assert found.shape == (len(alike), len(ANOMALIES))
    for row, (trail, column) in zip(found, alike, strict=True):
        assert row[column] == pytest.approx(explainer.attribute(trail, column).log_odds, abs=1e-5)


def test_the_baseline_is_what_it_says(explainer, flagged):
    trail, column, _ = flagged[0]
    mean = np.broadcast_to(explainer.typical, trail.shape).copy()
    at_mean = explainer.attribute(mean, column)
    assert not at_mean.parts.any()
    assert at_mean.log_odds == at_mean.baseline_log_odds
    assert at_mean.error == 0
    found = explainer.attribute(trail, column)
    assert found.baseline_log_odds == pytest.approx(at_mean.log_odds, abs=1e-5)
    zeros = explainer.attribute(np.zeros_like(trail), column, "zeros")
    assert not zeros.parts.any()
    against = explainer.attribute(trail, column, "zeros").baseline_log_odds
    assert against == pytest.approx(zeros.log_odds, abs=1e-5)


def changed(small, tmp_path, change) -> Explainer:
    """The explainer of a network with other weights, which answers alone."""
    folder = shutil.copytree(small.folder, tmp_path / "bundle")
    (folder / "stack.json").unlink()
    weights = load_file(folder / "lstm.safetensors")
    change(weights)
    save_file(weights, folder / "lstm.safetensors")
    return Explainer(folder, bundle.seal(folder))


def test_a_feature_that_the_network_cannot_see_is_worth_nothing(small, flagged, tmp_path):
    hidden = [FEATURES.index(name) for name in ("rule_jump", "gap_h_log", "km_log")]

    def blind(weights):
        weights["lstm.weight_ih_l0"][:, hidden] = 0

    blinded = changed(small, tmp_path, blind)
    for trail, column, _ in flagged:
        parts = blinded.attribute(trail, column).parts
        assert not parts[:, hidden].any()
        assert parts.any()


def test_the_stack_weighs_network_and_boosting(explainer, small, flagged, tmp_path):
    folder = shutil.copytree(small.folder, tmp_path / "bundle")
    (folder / "stack.json").unlink()
    alone, stack = Explainer(folder, bundle.seal(folder)), Stack.load(small.folder)
    boxes = {name: Boxes.of(b) for name, b in boosters(folder / "gbm").items()}
    assert boxes
    for trail, column, _ in flagged:
        both, network = explainer.attribute(trail, column), alone.attribute(trail, column)
        steps = both.steps == network.steps
        of_network, of_trees = stack.weight[column]
        expected = of_network * network.parts
        expected[-1] += of_trees * boxes[ANOMALIES[column]].worth(trail[-1], explainer.typical)
        assert not steps or np.allclose(both.parts, expected, atol=1e-4)


def test_what_is_flagged_for_speed_is_explained_by_it(explainer, flagged):
    about = {"rule_jump", "step_low_ratio", "step_z", "speed_kmh_log", "gap_h_log"}
    jumps = [trail for trail, column, _ in flagged if column == Anomaly.JUMP]
    assert jumps
    by_feature = np.mean(
        [explainer.attribute(trail, Anomaly.JUMP).parts.sum(axis=0) for trail in jumps], axis=0
    )
    best = {FEATURES[i] for i in np.argsort(-by_feature)[:5]}
    assert best & about


def test_more_steps_are_taken_where_the_path_is_rough(small, flagged, tmp_path):
    def roughen(weights):
        for name in weights:
            if name.startswith("lstm.weight"):
                weights[name] *= 6

    rough = changed(small, tmp_path, roughen)
    found = [rough.attribute(trail, column) for trail, column, _ in flagged]
    taken = {f.steps for f in found}
    assert max(taken) > FIRST_STEPS
    assert all(f.error < SMALL_ERROR for f in found if f.steps < 1024)


def test_only_the_last_scans_are_looked_at(explainer, flagged):
    trail, column, _ = flagged[0]
    long = np.concatenate([trail] * 12)
    assert len(long) > explainer.length
    found = explainer.attribute(long, column)
    assert found.parts.shape == (explainer.length, len(FEATURES))
    assert np.array_equal(found.parts, explainer.attribute(long[-explainer.length :], column).parts)


def test_a_folder_with_another_bundle_is_refused(small):
    with pytest.raises(BundleError, match="verdicts are by"):
        Explainer(small.folder, "0" * 64)


def test_every_feature_has_words():
    assert set(READABLE) == set(FEATURES)
    assert len(set(READABLE.values())) == len(READABLE)
    assert all(f"score of the rule for {name}" in READABLE.values() for name in ANOMALIES)


def test_attention_is_told_where_the_network_has_it(explainer, small, flagged, tmp_path):
    trail = max((trail for trail, _, _ in flagged), key=len)
    assert explainer.attention(trail) is None
    folder = shutil.copytree(small.folder, tmp_path / "bundle")
    shape = Shape(inputs=len(FEATURES), hidden=8, length=len(trail) - 1, attention=True)
    save(TrailLSTM(shape), folder / "lstm.safetensors")
    (folder / "lstm.json").write_text(json.dumps(shape.to_json()))
    shares = Explainer(folder, bundle.seal(folder)).attention(trail)
    assert shares.shape == (len(trail) - 1,), "as many scans as it looks back on"
    assert shares.sum() == pytest.approx(1, abs=1e-5) and (shares > 0).all()
