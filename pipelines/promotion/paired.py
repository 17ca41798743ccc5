"""Champion and challenger on the same scans: paired differences, with intervals by lot.

Both are resampled with the same draws of lots, so that what is hard for both cancels out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipelines.measures.blocks import Block
from pipelines.measures.bootstrap import Interval, ap_replicates, interval, macro
from pipelines.measures.lots import Float32, Float64, Resamples, by_lot, rate_upper, resample
from pipelines.measures.ranking import average_precision
from pipelines.promotion.settings import Settings
from trail.rules import FLAG
from trail.scan import ANOMALIES

CHALLENGER = "challenger"
CHAMPION = "champion"


@dataclass(frozen=True, slots=True)
class Figures:
    """What one model reaches, and its lot resamples.

    Attributes:
        ap: average precision, by wire name; not a number where no scan is anomalous.
        ap_drawn: float64 (B,) of each.
        f_beta: cost-weighted F-beta, of each type and of all ("all").
        f_beta_drawn: float64 (B,) of each.
        fpr_upper: upper 95 % bound of the false positive rate by lot, by wire name.
        fpr: the rate.
    """

    ap: Mapping[str, float]
    ap_drawn: Mapping[str, Float64]
    f_beta: Mapping[str, float]
    f_beta_drawn: Mapping[str, Float64]
    fpr_upper: Mapping[str, float]
    fpr: Mapping[str, float]

    @property
    def map(self) -> float:
        """Mean of the average precisions that are known."""
        known = [value for value in self.ap.values() if not math.isnan(value)]
        return sum(known) / len(known) if known else math.nan


def figures(block: Block, settings: Settings) -> dict[str, Figures]:
    """Figures of every model that scored a block, all on the same draws of lots."""
    draws = resample(block.lot, settings.bootstrap, settings.seed)
    return {name: _figures(block, score, draws, settings) for name, score in block.scores.items()}


def _figures(block: Block, score: Float32, draws: Resamples, settings: Settings) -> Figures:
    ap, ap_drawn, fpr, fpr_upper = {}, {}, {}, {}
    credit: dict[str, tuple[Float64, Float64]] = {}
    for k, kind in enumerate(ANOMALIES):
        counted = block.target[:, k] >= 0
        truth, mine = block.target[counted, k] == 1, score[counted, k]
        code = draws.code[counted]
        ap[kind] = average_precision(mine, truth)
        ap_drawn[kind] = ap_replicates(mine, truth, draws, code)
        flag = mine >= FLAG
        hits, misses, alarms, honest = (
            by_lot(code[chosen], draws.lots)
            for chosen in (flag & truth, ~flag & truth, flag & ~truth, ~truth)
        )
        fpr[kind] = float(alarms.sum() / honest.sum()) if honest.sum() else math.nan
        fpr_upper[kind] = rate_upper(alarms, honest, draws.weights)
        miss, alarm = settings.measures.miss[kind], settings.measures.false_alarm[kind]
        credit[kind] = ((miss + alarm) * hits, miss * misses + alarm * alarms)
    credit["all"] = (
        sum((won for won, _ in credit.values()), np.zeros(draws.lots)),
        sum((lost for _, lost in credit.values()), np.zeros(draws.lots)),
    )
    return Figures(
        ap=ap,
        ap_drawn=ap_drawn,
        f_beta={kind: float(_f_beta(*(x.sum() for x in both))) for kind, both in credit.items()},
        f_beta_drawn={
            kind: _f_beta(*(x @ draws.weights for x in both)) for kind, both in credit.items()
        },
        fpr_upper=fpr_upper,
        fpr=fpr,
    )


def _f_beta(won: Float64, lost: Float64) -> Float64:
    """(miss + alarm) TP / ((miss + alarm) TP + miss FN + alarm FP), summed over the types.

    F-beta with beta^2 = miss / alarm, multiplied out by the cost of a false alarm: types add up in
    the unit of the costs.
    """
    total = np.asarray(won + lost, dtype=np.float64)
    return np.divide(won, total, out=np.full(total.shape, math.nan), where=total > 0)


@dataclass(frozen=True, slots=True)
class Gains:
    """Challenger - champion with 95 % intervals by lot: of mAP and F-beta as a whole ("all") and by
    wire name.
    """

    ap: Mapping[str, Interval]
    f_beta: Mapping[str, Interval]


def gains(challenger: Figures, champion: Figures) -> Gains:
    """Paired differences of two models' figures on one block."""
    drawn = {
        kind: challenger.ap_drawn[kind] - champion.ap_drawn[kind] for kind in challenger.ap_drawn
    }
    ap = {
        kind: interval(challenger.ap[kind] - champion.ap[kind], drawn[kind]) for kind in ANOMALIES
    }
    both = macro(list(challenger.ap_drawn.values())) - macro(list(champion.ap_drawn.values()))
    ap["all"] = interval(challenger.map - champion.map, both)
    f_beta = {
        kind: interval(
            challenger.f_beta[kind] - champion.f_beta[kind],
            challenger.f_beta_drawn[kind] - champion.f_beta_drawn[kind],
        )
        for kind in challenger.f_beta
    }
    return Gains(ap, f_beta)
