"""Resampling by lot: false positives cluster by lot, so a lot is the unit that is drawn.

Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), 8; Davison & Hinkley,
Bootstrap Methods and their Application (1997), 3.8 (clustered data).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Resamples:
    """Draws of L lots with replacement, the same ones for every model: comparisons are paired.

    Attributes:
        code: int64 (n,), number of each scan's lot, from 0 to L - 1.
        weights: float32 (L, B), how often each lot was drawn in each of B replicates.
    """

    code: Int64
    weights: Float32

    @property
    def lots(self) -> int:
        """Number of lots, L."""
        return int(self.weights.shape[0])


def resample(lot: Int64, count: int, seed: int) -> Resamples:
    """`count` draws of the lots in `lot`, an int64 (n,) key of each scan's lot."""
    keys, code = np.unique(lot, return_inverse=True)
    size = len(keys)
    if size == 0:
        return Resamples(code.astype(np.int64), np.zeros((0, count), dtype=np.float32))
    draw = np.random.default_rng(seed).multinomial(size, np.full(size, 1 / size), size=count)
    return Resamples(code.astype(np.int64), np.ascontiguousarray(draw.T, dtype=np.float32))


def by_lot(code: Int64, lots: int) -> Float64:
    """How many scans each lot has, float64 (L,), of scans with lot numbers `code`."""
    return np.bincount(code, minlength=lots).astype(np.float64)


def rate_upper(hits: Float64, trials: Float64, weights: Float32, level: float = 0.95) -> float:
    """Upper one-sided bound of sum(hits) / sum(trials), both counted by lot, float64 (L,).

    The `level` quantile of the ratio over the lot resamples, and never less than the exact
    (Clopper-Pearson) bound for as many independent trials: with no hit at all every resample says
    0, which would prove nothing into certainty.

    Source: Clopper & Pearson, Biometrika 26 (1934); lot bootstrap as in this module.
    """
    total, found = float(trials.sum()), float(hits.sum())
    if total == 0:
        return 1.0
    exact = 1.0 if found >= total else float(beta.ppf(level, found + 1, total - found))
    drawn = trials @ weights
    rates = np.divide(hits @ weights, drawn, out=np.zeros_like(drawn), where=drawn > 0)
    return max(exact, float(np.quantile(rates, level)))
