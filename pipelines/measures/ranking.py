"""Quality of a ranking of scans, for one type: no threshold is chosen here.

In all of them `score` is float32 (n,) and `positive` bool (n,): scans that do not count have been
left out before.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pipelines.measures.lots import Float32, Float64

Bool = npt.NDArray[np.bool_]


def average_precision(score: Float32, positive: Bool) -> float:
    """AP = sum over thresholds n of (R_n - R_{n-1}) P_n; not a number without positives.

    The step-wise sum, not the trapezium, which promises precision between points that no threshold
    reaches. Equal scores are one threshold.

    Source: Zhu, Recall, precision and average precision (2004); scikit-learn's
    `average_precision_score`.
    """
    recall, precision = precision_recall(score, positive)
    if not len(recall) or math.isnan(recall[-1]):
        return math.nan
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def precision_recall(score: Float32, positive: Bool) -> tuple[Float64, Float64]:
    """Recall TP / P and precision TP / (TP + FP) at each distinct score, from the highest down."""
    order = np.argsort(-score, kind="stable")
    ranked, truth = score[order], positive[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], [True] * min(1, len(ranked))))
    found = np.cumsum(truth)[ends].astype(np.float64)
    total = float(positive.sum())
    recall = found / total if total else np.full(len(found), math.nan)
    return recall, found / (ends + 1.0)


def cut_at_fpr(honest: Float32, fpr: float) -> float:
    """The score that at most a share `fpr` of the `honest` scores exceeds (strictly).

    With k = floor(fpr * N) it is the (k + 1)-th highest: the least score to exceed for which
    FP / N <= fpr. Minus infinity where every honest scan may be flagged.
    """
    allowed = math.floor(fpr * len(honest) + 1e-9)
    if allowed >= len(honest):
        return -math.inf
    at = len(honest) - 1 - allowed
    return float(np.partition(honest, at)[at])


def recall_at_fpr(anomalous: Float32, honest: Float32, fpr: float) -> float:
    """Highest recall over the thresholds with FP / N <= `fpr`; not a number without positives.

    A point of the ROC curve, without interpolation. Source: Fawcett, An introduction to ROC
    analysis, Pattern Recognition Letters 27 (2006).
    """
    if not len(anomalous):
        return math.nan
    return float(np.mean(anomalous > cut_at_fpr(honest, fpr)))


def places(anomalous: Float32, honest: Float32) -> Float64:
    """For each of `anomalous`, the share of `honest` below it, ties counting half.

    Their mean is the AUC (Mann & Whitney 1947); as placement values they carry its variance
    (DeLong, DeLong & Clarke-Pearson, Biometrics 44, 1988).
    """
    ranked = np.sort(honest)
    below = np.searchsorted(ranked, anomalous, side="left")
    upto = np.searchsorted(ranked, anomalous, side="right")
    return (below + upto) / (2.0 * len(ranked)) if len(ranked) else np.full(len(below), math.nan)


def precision_at_prevalence(recall: float, fpr: float, prevalence: float) -> float:
    """P = p R / (p R + (1 - p) FPR): what precision becomes where a share p is anomalous.

    Bayes' rule; recall and FPR do not depend on the share, precision does. Not a number if nothing
    is flagged.
    """
    hits, alarms = prevalence * recall, (1 - prevalence) * fpr
    return hits / (hits + alarms) if hits + alarms > 0 else math.nan
