"""Controls: tampering that cannot be told. A model that tells it has found a leak."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipelines.measures.blocks import Block, first_true
from pipelines.measures.lots import Float32
from pipelines.measures.ranking import places


@dataclass(frozen=True, slots=True)
class ControlAuc:
    """AUC of one control subtype against honest scans of the same operation.

    Attributes:
        auc: 0.5 cannot be told.
        low: 2.5 % percentile over lots.
        high: 97.5 % percentile over lots.
        trails: trails of the subtype.
    """

    auc: float
    low: float
    high: float
    trails: int


def control_auc(
    block: Block, score: Float32, anomaly: int, subtype: int, count: int, seed: int
) -> ControlAuc:
    """AUC of `score`, float32 (n,), for the scans of control `subtype`.

    Each scan of the cause is compared with the honest scans of its operation, and the AUC is the
    mean of those comparisons: a control that only concerns sales must not be told by being a sale.
    Where something does tell it later (the conflicting tracks of a cloned box), only the scans
    before that evidence are asked. The interval draws the controls' lots;
    honest scans are so many that their share of the variance is small (DeLong 1988).
    """
    honest = block.target[:, anomaly] == 0
    of_subtype = block.control & (block.subtype == subtype)
    end = first_true(block.evidence & of_subtype, block.trail)[block.trail]
    chosen = of_subtype & block.cause & (np.arange(len(block)) < end)
    place = np.full(len(block), math.nan)
    for op in np.unique(block.op[chosen]):
        here = chosen & (block.op == op)
        place[here] = places(score[here], score[honest & (block.op == op)])
    known = chosen & ~np.isnan(place)
    if not known.any():
        return ControlAuc(math.nan, math.nan, math.nan, 0)
    _, lot = np.unique(block.lot[known], return_inverse=True)
    total = np.bincount(lot, weights=place[known])
    number = np.bincount(lot)
    draw = np.random.default_rng(seed).multinomial(
        len(number), np.full(len(number), 1 / len(number)), size=count
    )
    low, high = np.quantile((draw @ total) / (draw @ number), [0.025, 0.975])
    trails = len(np.unique(block.trail[known]))
    return ControlAuc(float(place[known].mean()), float(low), float(high), trails)
