"""Ways to calibrate: each mends what it is for, on scans that it was not fitted on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from bench import calibrating

N = 60_000


def drawn(seed, wrong):
    """Log-odds that are off by `wrong`, and what came of the true ones."""
    rng = np.random.default_rng(seed)
    true = rng.normal(-3, 2, N)
    return wrong(true).astype(np.float32), rng.random(N) < expit(true)


def loss(way, wrong):
    (x, truth), (z, held) = drawn(1, wrong), drawn(2, wrong)
    return calibrating.log_loss(calibrating.WAYS[way](x, truth)(z), held)


def steeper(true):
    return 2 * true


def shifted(true):
    return 2 * true - 3


def bent(true):
    return np.where(true > -3, true, 6 * (true + 3) - 3)


BEST = loss("none", lambda true: true)


@pytest.mark.parametrize(
    ("wrong", "mends", "does_not"),
    [
        (steeper, ["temperature", "Platt (served)", "isotonic"], ["none"]),
        (shifted, ["Platt (served)", "isotonic"], ["none", "temperature"]),
        (bent, ["isotonic"], ["none", "temperature", "Platt (served)"]),
    ],
)
def test_each_way_mends_what_it_is_for(wrong, mends, does_not):
    for way in mends:
        assert loss(way, wrong) == pytest.approx(BEST, rel=0.02), way
    for way in does_not:
        assert loss(way, wrong) > 1.03 * BEST, way


def test_rows_say_what_ties_cost_and_leave_out_what_is_not_counted():
    def part(seed):
        x, truth = drawn(seed, bent)
        logits = np.repeat(x[:, None], 5, axis=1)
        target = np.repeat(truth[:, None], 5, axis=1).astype(np.int8)
        return logits, target

    known, (logits, target) = part(1), part(2)
    found = {
        row[0]: [float(cell) for cell in row[1:]]
        for row in calibrating.rows(known, (logits, target))
    }
    assert list(found) == list(calibrating.WAYS)
    assert found["none"][0] == found["temperature"][0] == found["Platt (served)"][0]
    assert found["isotonic"][0] < found["none"][0]
    assert max(found["isotonic"][2:]) < min(found["none"][2:])
    wrong = np.concatenate([target, np.full_like(target, -1)])
    again = calibrating.rows(known, (np.concatenate([logits, -logits]), wrong))
    assert [row[0] for row in again] == list(found)
    assert [[float(cell) for cell in row[1:]] for row in again] == list(found.values())


def test_isotonic_never_says_never():
    x = np.linspace(-5, 5, 100, dtype=np.float32)
    way = calibrating.WAYS["isotonic"](x, x > 0)
    assert 0 < way(np.float32([-9]))[0] < way(np.float32([9]))[0] < 1
