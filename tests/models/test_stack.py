"""The stack finds what its parts are worth, and never turns one of them around."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from models import bundle, predict
from models.bundle import Bundle, BundleError
from models.stack import Stack, served
from tests.models.small_bundles import encoded, small_bundle, some_scans

N = 20_000


def parts(*noise: float) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Two models that see the same truth through noise of their own, and the truth."""
    rng = np.random.default_rng(0)
    truth = rng.random((N, 5)) < 0.05
    logits = {
        name: (8 * truth - 4 + sd * rng.normal(size=(N, 5))).astype(np.float32)
        for name, sd in zip(("lstm", "gbm"), noise, strict=True)
    }
    return logits, truth.astype(np.int8)


def test_it_is_better_than_either_of_two_that_err_apart():
    logits, target = parts(4, 4)
    half = {name: value[: N // 2] for name, value in logits.items()}
    stack = Stack.fit(half, target[: N // 2])
    rest = {name: value[N // 2 :] for name, value in logits.items()}
    for k in range(5):
        truth = target[N // 2 :, k]
        both = average_precision_score(truth, stack(rest)[:, k])
        assert both > max(average_precision_score(truth, rest[name][:, k]) for name in rest) + 0.05


def test_its_log_odds_are_those_of_the_truth():
    logits, target = parts(4, 6)
    found = 1 / (1 + np.exp(-Stack.fit(logits, target)(logits)))
    for low, high in ((0.02, 0.1), (0.1, 0.4), (0.4, 0.8), (0.8, 1.0)):
        there = (found >= low) & (found < high)
        assert target[there].mean() == pytest.approx(found[there].mean(), abs=0.04)


def test_a_part_that_errs_has_no_say_and_is_not_turned_around():
    logits, target = parts(4, 4)
    logits["gbm"] = -logits["gbm"]
    weight = Stack.fit(logits, target).weight
    assert (weight[:, 1] == 0).all() and (weight[:, 0] > 0).all()


def test_a_box_that_counts_once_weighs_as_one_scan():
    logits, target = parts(4, 6)
    size = np.where(np.arange(N) < 200, 50, 1)
    boxed = {name: np.repeat(value, size, axis=0) for name, value in logits.items()}
    counts = np.repeat(1 / size, size).astype(np.float32)
    once = Stack.fit(logits, target)
    assert Stack.fit(boxed, np.repeat(target, size, axis=0), counts).weight == pytest.approx(
        once.weight, rel=1e-3
    )
    assert Stack.fit(boxed, np.repeat(target, size, axis=0)).weight != pytest.approx(
        once.weight, rel=1e-2
    )


def test_what_cannot_be_learned_is_left_to_the_network():
    logits, target = parts(4, 4)
    target[:, 1], target[:, 2] = 0, -1
    logits["gbm"][:, 3] = -20
    stack = Stack.fit(logits, target)
    assert stack.weight[1:3].tolist() == [[1, 0], [1, 0]]
    assert stack.intercept[1:3].tolist() == [0, 0]
    assert stack.weight[3, 1] == 0 and np.isfinite(stack.intercept).all()


def test_it_survives_its_file(tmp_path):
    logits, target = parts(4, 6)
    stack = Stack.fit(logits, target)
    assert served(tmp_path) == "lstm"
    stack.save(tmp_path)
    assert served(tmp_path) == "stack"
    assert np.array_equal(Stack.load(tmp_path)(logits), stack(logits))


def test_a_bundle_answers_as_its_weights_do(tmp_path):
    small = Bundle(small_bundle(tmp_path / "bundle"))
    asked = encoded(some_scans(7), small.network)
    found = small.probabilities(asked.features, asked.offsets)
    said = predict.scores(small.folder, asked)
    assert small.served == "stack"
    assert np.allclose(found, said["stack"], atol=1e-5)
    assert not np.allclose(found, said["lstm"], atol=1e-3)


def test_without_a_stack_the_network_answers(tmp_path):
    small = Bundle(small_bundle(tmp_path / "bundle", stacked=False))
    asked = encoded(some_scans(7), small.network)
    assert small.served == "lstm"
    parts = predict.lstm_logits(small.folder, asked.features, asked.offsets)
    found = small.probabilities(asked.features, asked.offsets)
    assert np.allclose(found, 1 / (1 + np.exp(-parts)), atol=1e-5)


def test_a_stack_without_its_boosting_is_refused(tmp_path):
    folder = small_bundle(tmp_path / "bundle")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "gbm.onnx").unlink()
    bundle.seal(copy)
    with pytest.raises(BundleError, match=r"no gbm\.onnx; register it first"):
        Bundle(copy)
