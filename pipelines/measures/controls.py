"""Controls: tampering that cannot be told. A model that tells it has found a leak.

A control scan is compared with honest scans that were read as it was: the same operation, the same
operation before it, about as many items at once; and for movements, about as long a time over the
usual one. A whole box that came in good order must not be told by being whole, nor a sale by being
a sale, nor a quick lorry by what makes it quick: other lorries are as quick, if few.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from pipelines.measures.blocks import Block, Int8
from pipelines.measures.lots import Float32, Int64
from pipelines.measures.ranking import Bool, places
from trail.scan import Anomaly

_SIZES: Final = (2, 5, 9, 14, 31)
"""Items read at once: alone, some, most of a box, a box, more, a pallet."""
_PACES: Final = (
    0.4,
    0.5,
    0.6,
    0.65,
    0.7,
    0.75,
    0.8,
    0.9,
    1.0,
    1.2,
    1.5,
    2.0,
    3.0,
    4.0,
    6.0,
    9.0,
    15.0,
)
"""Time over usual time: classes begin here."""
_NO_OP: Final = 10
_LEAST_ALIKE: Final = 50
"""Honest scans that a class needs for a comparison."""


@dataclass(frozen=True, slots=True)
class ControlAuc:
    """AUC of one control subtype against honest scans that were read alike.

    Attributes:
        auc: 0.5 cannot be told.
        low: 2.5 % percentile over lots.
        high: 97.5 % percentile over lots.
        trails: trails of the subtype.
        recall_at_fpr1: share above the highest 1 % of the honest scans.
    """

    auc: float
    low: float
    high: float
    trails: int
    recall_at_fpr1: float


def control_auc(
    block: Block, score: Float32, anomaly: int, subtype: int, count: int, seed: int
) -> ControlAuc:
    """AUC of `score`, float32 (n,), for the scans of control `subtype`.

    Where something does tell it later (the conflicting tracks of a cloned box), only the scans
    before the lot's first such evidence are asked: what tells one item tells of its mates.
    """
    of_subtype = block.control & (block.subtype == subtype)
    chosen = of_subtype & block.cause & _before_first(block.evidence & of_subtype, block)
    honest = block.target[:, anomaly] == 0
    alike = read_alike(block.op, block.trail, block.lot, block.time_us)
    if anomaly == Anomaly.JUMP:
        alike = moved_alike(alike, block.pace)
    return matched_auc(score, chosen, honest, alike, block.lot, block.trail, count, seed)


def _before_first(evidence: Bool, block: Block) -> Bool:
    """The scans that were made before the first one of their lot in `evidence`, bool (n,)."""
    _, lot = np.unique(block.lot, return_inverse=True)
    first = np.full(len(block), np.iinfo(np.int64).max)
    np.minimum.at(first, lot[evidence], block.time_us[evidence])
    earlier: Bool = block.time_us < first[lot]
    return earlier


def read_alike(op: Int8, trail: Int64, lot: Int64, time_us: Int64) -> Int64:
    """Number of the class of each scan, int64 (n,); arguments (n,), scans in trail order."""
    before = np.append(np.int8(_NO_OP), op[:-1]).astype(np.int64)
    before[np.append(True, trail[1:] != trail[:-1])[: len(op)]] = _NO_OP
    order = np.lexsort((time_us, op, lot))
    new = np.zeros(len(op), bool)
    for column in (lot, op, time_us):
        new |= np.append(True, np.diff(column[order]) != 0)[: len(op)]
    reading = np.empty(len(op), np.int64)
    reading[order] = np.cumsum(new) - 1
    size = np.searchsorted(_SIZES, np.bincount(reading)[reading], side="right")
    return (op * np.int64(_NO_OP + 1) + before) * (len(_SIZES) + 1) + size


def moved_alike(alike: Int64, pace: Float32) -> Int64:
    """Classes of `read_alike`, int64 (n,), parted further by `Block.pace`, float32 (n,)."""
    place = np.searchsorted(_PACES, pace, side="right")
    return alike * (len(_PACES) + 2) + np.where(np.isnan(pace), len(_PACES) + 1, place)


def matched_auc(
    score: Float32,
    chosen: Bool,
    honest: Bool,
    alike: Int64,
    lot: Int64,
    trail: Int64,
    count: int,
    seed: int,
) -> ControlAuc:
    """Mean place of the chosen scans among the honest ones of their class.

    The interval draws the chosen scans' lots; honest scans are so many that their share of the
    variance is small (DeLong 1988).

    Args:
        score: float32 (n,).
        chosen: bool (n,), scans of the control.
        honest: bool (n,).
        alike: int64 (n,), see `read_alike` and `moved_alike`.
        lot: int64 (n,).
        trail: int64 (n,).
        count: bootstrap replicates.
        seed: of the bootstrap.
    """
    place, caught = np.full(len(score), math.nan), np.zeros(len(score), bool)
    for group in np.unique(alike[chosen]):
        there = score[honest & (alike == group)]
        if len(there) >= _LEAST_ALIKE:
            here = chosen & (alike == group)
            place[here] = places(score[here], there)
            caught[here] = score[here] > np.quantile(there, 0.99)
    known = ~np.isnan(place)
    if not known.any():
        return ControlAuc(math.nan, math.nan, math.nan, 0, math.nan)
    _, of = np.unique(lot[known], return_inverse=True)
    total, number = np.bincount(of, weights=place[known]), np.bincount(of)
    draw = np.random.default_rng(seed).multinomial(
        len(number), np.full(len(number), 1 / len(number)), size=count
    )
    low, high = np.quantile((draw @ total) / (draw @ number), [0.025, 0.975])
    return ControlAuc(
        auc=float(place[known].mean()),
        low=float(low),
        high=float(high),
        trails=len(np.unique(trail[known])),
        recall_at_fpr1=float(caught[known].mean()),
    )
