"""Paired lot bootstrap of average precision, and tests for several types at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.measures.lots import Float32, Float64, Int64, Resamples
from pipelines.measures.ranking import Bool

_EXACT_IN_FLOAT32 = 1 << 23
_CHUNK = 1 << 22


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate on the data as they are, and percentiles of its lot resamples.

    Attributes:
        mid: the estimate.
        low: 2.5 % percentile.
        high: 97.5 % percentile.
        p_value: two-sided, of "it is 0"; only of differences.
    """

    mid: float
    low: float
    high: float
    p_value: float = math.nan


def ap_replicates(score: Float32, positive: Bool, draws: Resamples, code: Int64) -> Float64:
    """Average precision in each of B lot resamples, float64 (B,).

    Equal to `average_precision` with each scan counted as often as its lot was drawn, not a number
    where no anomalous scan was drawn. What only depends on the ranking is done once: AP changes
    at the G scores that some anomalous scan has, so honest scans are counted by lot between two
    such scores, and those below the lowest are left out. With the cumulated counts C, (G, L),
    and the draws W, (L, B), all true and false positives of all replicates are C W: O(G L B) in a
    matrix product, whatever the number of scans.

    Args:
        score: float32 (n,).
        positive: bool (n,).
        draws: the resamples.
        code: int64 (n,), lot numbers as in `draws.code`.

    Source: Davison & Hinkley (1997), 3.8, resampling clusters; the weights form is
    scikit-learn's `average_precision_score(sample_weight=)`.
    """
    count = draws.weights.shape[1]
    if not positive.any():
        return np.full(count, math.nan)
    levels = np.unique(score[positive])[::-1]
    exact = len(score) < _EXACT_IN_FLOAT32
    true = _counts_above(levels, score[positive], code[positive], draws.lots, exact)
    false = _counts_above(levels, score[~positive], code[~positive], draws.lots, exact)
    width = max(1, min(count, _CHUNK // len(levels)))
    parts = [
        _ap_of(true @ draws.weights[:, at : at + width], false @ draws.weights[:, at : at + width])
        for at in range(0, count, width)
    ]
    return np.concatenate(parts)


def _counts_above(
    levels: Float32, score: Float32, code: Int64, lots: int, exact: bool
) -> Float32 | Float64:
    """How many scans of each lot have at least each of the falling `levels`, (G, L)."""
    group = len(levels) - np.searchsorted(levels[::-1], score, side="right")
    kept = group < len(levels)
    flat = np.bincount(group[kept] * lots + code[kept], minlength=len(levels) * lots)
    above = np.cumsum(flat.reshape(len(levels), lots), axis=0)
    # Whole numbers below 2^24 are exact in float32, at twice the speed.
    return above.astype(np.float32) if exact else above.astype(np.float64)


def _ap_of(true: Float32 | Float64, false: Float32 | Float64) -> Float64:
    """AP of each column of cumulated true and false positives, both (G, B)."""
    gained = np.diff(true, axis=0, prepend=np.zeros((1, true.shape[1]), dtype=true.dtype))
    flagged = true + false
    # A level that nobody drawn reaches has gained nothing, so what it is divided by is no matter.
    precision = true / np.maximum(flagged, 1)
    total = true[-1].astype(np.float64)
    summed = np.einsum("gb,gb->b", gained, precision, dtype=np.float64)
    return np.divide(summed, total, out=np.full(len(total), math.nan), where=total > 0)


def macro(replicates: Sequence[Float64]) -> Float64:
    """Mean over the types in each replicate, float64 (B,), of those types that have a value."""
    stacked = np.stack(list(replicates))
    known = ~np.isnan(stacked)
    number = known.sum(axis=0)
    summed = np.where(known, stacked, 0.0).sum(axis=0)
    return np.divide(summed, number, out=np.full(len(number), math.nan), where=number > 0)


def interval(mid: float, replicates: Float64) -> Interval:
    """95 % percentile interval of `replicates`, float64 (B,), around the estimate `mid`.

    The p-value is 2 min(#{d <= 0} + 1, #{d >= 0} + 1) / (B + 1), at most 1: the achieved
    significance level that the percentile interval implies. Source: Davison & Hinkley (1997), 4.4.
    """
    known = replicates[~np.isnan(replicates)]
    if not len(known) or math.isnan(mid):
        return Interval(mid, math.nan, math.nan)
    low, high = np.quantile(known, [0.025, 0.975])
    rarer = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return Interval(mid, float(low), float(high), min(1.0, 2 * (rarer + 1) / (len(known) + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being several, so that any error has the chance that one had.

    The i-th smallest of m becomes max over j <= i of (m - j + 1) p_(j), at most 1; those that are
    not a number stay so and are not counted. Source: Holm, Scand. J. Statistics 6 (1979).
    """
    adjusted = [math.nan] * len(p_values)
    known = sorted((p, at) for at, p in enumerate(p_values) if not math.isnan(p))
    worst = 0.0
    for rank, (p, at) in enumerate(known):
        worst = max(worst, min(1.0, (len(known) - rank) * p))
        adjusted[at] = worst
    return adjusted
