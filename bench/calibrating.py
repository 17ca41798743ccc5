"""Ways to make probabilities of log-odds, and what each is worth where it was not fitted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import expit

from models.calibration import Calibration
from pipelines.measures.calibration import ece, equal_mass
from pipelines.measures.ranking import average_precision
from trail.scan import ANOMALIES, Float32

Int8 = npt.NDArray[np.int8]
Bool = npt.NDArray[np.bool_]
Way = Callable[[Float32], Float32]
"""Probabilities, float32 (n,), of the log-odds of one type, float32 (n,)."""

_LARGEST_SLOPE: Final = 20.0


def rows(known: tuple[Float32, Int8], asked: tuple[Float32, Int8]) -> list[list[str]]:
    """Each way's name, macro AP, log loss (nats per 1,000 scans, summed over types), ECE by type.

    Args:
        known: log-odds and targets (n, 5) to fit on.
        asked: those to measure on; a target of -1 is not counted.
    """
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in WAYS}
    for k in range(len(ANOMALIES)):
        (x, truth), (z, held) = (_counted(*part, k) for part in (known, asked))
        for name, way in WAYS.items():
            p = way(x, truth)(z)
            found[name].append((average_precision(p, held), log_loss(p, held), _ece(p, held)))
    made = []
    for name, by_type in found.items():
        ap, loss, off = np.array(by_type).T
        whole = [f"{ap.mean():.4f}", f"{1000 * loss.sum():.3f}"]
        made.append([name, *whole, *(f"{error:.5f}" for error in off)])
    return made


def untouched(_x: Float32, _truth: Bool) -> Way:
    """The network's own probabilities."""
    return lambda z: np.asarray(expit(z), np.float32)


def temperature(x: Float32, truth: Bool) -> Way:
    """One slope. Source: Guo et al., On calibration of modern neural networks, ICML 2017."""

    def loss(log_slope: float) -> float:
        return log_loss(np.asarray(expit(np.exp(log_slope) * x), np.float64), truth)

    best = minimize_scalar(loss, bounds=(-np.log(_LARGEST_SLOPE), np.log(_LARGEST_SLOPE)))
    slope = float(np.exp(best.x))
    return lambda z: np.asarray(expit(slope * z), np.float32)


def platt(x: Float32, truth: Bool) -> Way:
    """Slope and intercept: what the service does; see `models.calibration`."""
    fitted = Calibration.fit(x[:, None], truth[:, None].astype(np.int8))
    return lambda z: fitted(z[:, None])[:, 0]


def isotonic(x: Float32, truth: Bool) -> Way:
    """A rising step function. Source: Zadrozny & Elkan, KDD 2002.

    Where it says 0 or 1 it says as little or as much as Platt's smoothed targets do: one scan
    that is otherwise would cost without limit.
    """
    from sklearn.isotonic import IsotonicRegression

    least = 1 / (int((~truth).sum()) + 2)
    most = 1 - 1 / (int(truth.sum()) + 2)
    fitted = IsotonicRegression(y_min=least, y_max=most, out_of_bounds="clip").fit(x, truth)
    return lambda z: np.asarray(fitted.predict(z), np.float32)


WAYS: Final[dict[str, Callable[[Float32, Bool], Way]]] = {
    "none": untouched,
    "temperature": temperature,
    "Platt (served)": platt,
    "isotonic": isotonic,
}


def log_loss(probability: npt.NDArray[np.floating], positive: Bool) -> float:
    """Mean of -log of the probability that was given to what is, in nats."""
    p = np.clip(np.asarray(probability, np.float64), 1e-12, 1 - 1e-12)
    return float(-np.mean(np.where(positive, np.log(p), np.log1p(-p))))


def _ece(probability: Float32, positive: Bool) -> float:
    return ece(equal_mass(probability, positive))


def _counted(logits: Float32, target: Int8, k: int) -> tuple[Float32, Bool]:
    kept = target[:, k] >= 0
    return logits[kept, k], target[kept, k] == 1
