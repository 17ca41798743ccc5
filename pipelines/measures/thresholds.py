"""Where to flag: the cheapest threshold whose false positives are provably rare."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipelines.measures.lots import Float32, Int64, Resamples, by_lot, rate_upper, resample
from pipelines.measures.settings import Settings
from trail.scan import ANOMALIES

NEVER = 1.01
"""A threshold that no score reaches: scores lie in [0, 1]."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Operating thresholds of one model, by wire name; a scan is flagged at score >= value.

    Attributes:
        value: threshold in [0, 1], or `NEVER`.
        fpr: false positive rate on the part where it was chosen.
        fpr_upper95: upper 95 % bound of that rate, by lot.
        recall: recall on that part.
        cost: cost on that part, in the unit of the cost matrix, per scan.
    """

    value: dict[str, float]
    fpr: dict[str, float]
    fpr_upper95: dict[str, float]
    recall: dict[str, float]
    cost: dict[str, float]

    def row(self) -> Float32:
        """The thresholds as float32 (5,), in the order of `trail.scan.ANOMALIES`."""
        return np.array([self.value[name] for name in ANOMALIES], dtype=np.float32)


@dataclass(frozen=True, slots=True)
class _Choice:
    value: float
    fpr: float
    upper: float
    recall: float
    cost: float


def choose(
    scores: Float32, target: npt.NDArray[np.int8], lot: Int64, settings: Settings
) -> Thresholds:
    """Thresholds for `scores`, float32 (n, 5) in [0, 1], from a calibration part.

    For each type, among the thresholds t at which the upper 95 % bound of FPR(t) by lot is at most
    `settings.fpr_bound`, the one of least cost C(t) = miss * FN(t) + false_alarm * FP(t). As
    beta^2 = miss / false_alarm, C(t) is false_alarm * (beta^2 FN + FP), the error term of F-beta:
    both put a hit and a false alarm at the same exchange rate. One scan more or less decides
    nothing: of the thresholds that cost up to one error of the cheaper kind more, it is the one
    nearest to false_alarm / (false_alarm + miss), which is best where scores are probabilities.
    Where flagging never is cheapest, it never is flagged.

    Args:
        scores: float32 (n, 5).
        target: int8 (n, 5): 1 anomalous, 0 honest, -1 not counted.
        lot: int64 (n,), lot key of each scan.
        settings: bound, costs, number of replicates and seed.

    Source: Elkan, The foundations of cost-sensitive learning (IJCAI 2001); bound by lot bootstrap,
    `pipelines.measures.lots`.
    """
    draws = resample(lot, settings.bootstrap, settings.seed)
    picks = {
        name: _choose_one(
            scores[:, k],
            target[:, k],
            draws,
            settings.miss[name],
            settings.false_alarm[name],
            settings.fpr_bound,
        )
        for k, name in enumerate(ANOMALIES)
    }
    return Thresholds(
        value={name: pick.value for name, pick in picks.items()},
        fpr={name: pick.fpr for name, pick in picks.items()},
        fpr_upper95={name: pick.upper for name, pick in picks.items()},
        recall={name: pick.recall for name, pick in picks.items()},
        cost={name: pick.cost for name, pick in picks.items()},
    )


def fpr_upper(
    score: Float32, target: npt.NDArray[np.int8], draws: Resamples, threshold: float
) -> tuple[float, float]:
    """False positive rate at `threshold` and its upper 95 % bound by lot, for one type."""
    honest = target == 0
    flagged = honest & (score >= np.float32(threshold))
    trials = by_lot(draws.code[honest], draws.lots)
    hits = by_lot(draws.code[flagged], draws.lots)
    rate = float(hits.sum() / trials.sum()) if trials.sum() else 0.0
    return rate, rate_upper(hits, trials, draws.weights)


def _choose_one(
    score: Float32,
    target: npt.NDArray[np.int8],
    draws: Resamples,
    miss: float,
    false_alarm: float,
    bound: float,
) -> _Choice:
    counted = target >= 0
    order = np.argsort(-score[counted], kind="stable")
    ranked, truth = score[counted][order], target[counted][order]
    code = draws.code[counted][order]
    positives, total = int((truth == 1).sum()), len(truth)
    if total == 0:
        return _Choice(NEVER, 0.0, 1.0, 0.0, 0.0)
    # Only the last scan of a run of equal scores can be the last one that is flagged.
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    trials = by_lot(code[truth == 0], draws.lots)

    def upper_at(flagged: int) -> float:
        hits = by_lot(code[:flagged][truth[:flagged] == 0], draws.lots)
        return rate_upper(hits, trials, draws.weights)

    allowed = _last_allowed(ends, upper_at, bound)
    hits = np.concatenate([[0], np.cumsum(truth == 1)[ends[:allowed]]]).astype(np.float64)
    alarms = np.concatenate([[0], np.cumsum(truth == 0)[ends[:allowed]]]).astype(np.float64)
    cost = miss * (positives - hits) + false_alarm * alarms
    # Without a single anomalous scan the cost says nothing but "never"; the bound still does.
    best = int(np.argmin(cost)) if positives else allowed
    if positives and best > 0:
        good = np.flatnonzero(cost <= cost[best] + min(miss, false_alarm))
        values = np.array([_between(ranked, _flagged(ends, int(i))) for i in good])
        best = int(good[np.argmin(np.abs(values - false_alarm / (false_alarm + miss)))])
    flagged = _flagged(ends, best)
    honest = float(trials.sum())
    return _Choice(
        value=_between(ranked, flagged),
        fpr=float(alarms[best] / honest) if honest else 0.0,
        upper=upper_at(flagged),
        recall=float(hits[best] / positives) if positives else 0.0,
        cost=float(cost[best] / total),
    )


def _flagged(ends: Int64, candidate: int) -> int:
    """How many scans the i-th candidate threshold flags; the 0th flags none."""
    return 0 if candidate == 0 else int(ends[candidate - 1]) + 1


def _last_allowed(ends: Int64, upper_at: Callable[[int], float], bound: float) -> int:
    """How many of the candidate thresholds, highest first, keep the bound (it only grows)."""
    low, high = 0, len(ends)
    while low < high:
        middle = (low + high + 1) // 2
        if upper_at(int(ends[middle - 1]) + 1) <= bound:
            low = middle
        else:
            high = middle - 1
    return low


def _between(ranked: Float32, flagged: int) -> float:
    """A float32 value that the first `flagged` scores reach and the others do not.

    Half-way to the next score, which carries over to another part better than the score itself.
    """
    if flagged == 0:
        return NEVER
    last = ranked[flagged - 1]
    if flagged == len(ranked):
        return float(last)
    middle = np.float32((float(last) + float(ranked[flagged])) / 2)
    return float(middle if middle > ranked[flagged] else last)
