"""Quality at an operating threshold, for one type."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pipelines.measures.blocks import Int8
from pipelines.measures.ranking import Bool


@dataclass(frozen=True, slots=True)
class Counts:
    """Scans by truth and flag; those that do not count are in none of the four.

    Rates of nothing are not a number.
    Source: Fawcett, An introduction to ROC analysis, Pattern Recognition Letters 27 (2006).
    """

    hits: int
    misses: int
    alarms: int
    passes: int

    @property
    def recall(self) -> float:
        """TP / (TP + FN)."""
        return _share(self.hits, self.hits + self.misses)

    @property
    def precision(self) -> float:
        """TP / (TP + FP)."""
        return _share(self.hits, self.hits + self.alarms)

    @property
    def specificity(self) -> float:
        """TN / (TN + FP)."""
        return _share(self.passes, self.passes + self.alarms)

    @property
    def fpr(self) -> float:
        """FP / (TN + FP)."""
        return _share(self.alarms, self.passes + self.alarms)

    @property
    def accuracy(self) -> float:
        """(TP + TN) / all; a legacy figure: flagging nothing already has about 98 %."""
        return _share(self.hits + self.passes, self.total)

    @property
    def total(self) -> int:
        """Scans that count."""
        return self.hits + self.misses + self.alarms + self.passes

    def f_beta(self, beta: float) -> float:
        """(1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP).

        Recall counts b times as much as precision. Source: van Rijsbergen, Information Retrieval
        (1979), 7.
        """
        hits = (1 + beta**2) * self.hits
        return _share(hits, hits + beta**2 * self.misses + self.alarms)

    def cost(self, miss: float, false_alarm: float) -> float:
        """Sum of costs, miss * FN + false_alarm * FP."""
        return miss * self.misses + false_alarm * self.alarms

    def saving(self, miss: float, false_alarm: float) -> float:
        """1 - cost / min(cost of flagging none, cost of flagging all).

        1 is perfect, 0 no better than looking at nothing (or at everything), below 0 worse.
        Source: Whitrow et al., Transaction aggregation as a strategy for credit card fraud
        detection, DMKD 18 (2009); Bahnsen et al., Expert Systems with Applications 42 (2015).
        """
        none = miss * (self.hits + self.misses)
        every = false_alarm * (self.alarms + self.passes)
        blind = min(none, every)
        return 1 - self.cost(miss, false_alarm) / blind if blind > 0 else math.nan


def count(flag: Bool, target: Int8) -> Counts:
    """Counts of `flag`, bool (n,), against `target`, int8 (n,) of 1, 0 and -1 (not counted)."""
    bad, honest = target == 1, target == 0
    hits, alarms = int((flag & bad).sum()), int((flag & honest).sum())
    return Counts(hits, int(bad.sum()) - hits, alarms, int(honest.sum()) - alarms)


def _share(part: float, whole: float) -> float:
    return part / whole if whole else math.nan
