"""Whether a probability means what it says, for one type."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipelines.measures.lots import Float32, Float64, Int64
from pipelines.measures.ranking import Bool


@dataclass(frozen=True, slots=True)
class Bins:
    """Scans grouped by their probability: mean probability, share anomalous, number; all (k,)."""

    mean: Float64
    share: Float64
    number: Int64


def brier(probability: Float32, positive: Bool) -> float:
    """Mean of (p - y)^2. Source: Brier, Monthly Weather Review 78 (1950)."""
    if not len(probability):
        return math.nan
    return float(np.mean((probability.astype(np.float64) - positive) ** 2))


def equal_mass(probability: Float32, positive: Bool, bins: int = 15) -> Bins:
    """`bins` groups of (nearly) the same number of scans, by rising probability."""
    order = np.argsort(probability, kind="stable")
    group = np.arange(len(order)) * bins // max(1, len(order))
    return _binned(probability[order], positive[order], group, bins)


def equal_width(probability: Float32, positive: Bool, bins: int = 10) -> Bins:
    """`bins` groups of the same width in [0, 1], from which a curve is drawn.

    Anomalies are rare: nearly every group of the same number of scans would lie at 0.
    """
    group = np.minimum((probability * np.float32(bins)).astype(np.int64), bins - 1)
    return _binned(probability, positive, group, bins)


def ece(bins: Bins) -> float:
    """Expected calibration error, sum over bins of n_b / n |mean p - share anomalous|.

    Source: Naeini, Cooper & Hauskrecht, AAAI 2015; equal mass as in Nixon et al., Measuring
    calibration in deep learning (2019), since equal width hides the rare class.
    """
    total = bins.number.sum()
    off = bins.number * np.abs(bins.mean - bins.share)
    return float(off.sum() / total) if total else math.nan


def _binned(probability: Float32, positive: Bool, group: Int64, bins: int) -> Bins:
    number = np.bincount(group, minlength=bins)
    kept = number > 0
    mean = np.bincount(group, weights=probability, minlength=bins)[kept] / number[kept]
    share = np.bincount(group, weights=positive, minlength=bins)[kept] / number[kept]
    return Bins(mean, share, number[kept])
