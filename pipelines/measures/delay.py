"""How long after it could be known an anomaly is told, one row a tampered trail."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pipelines.measures.blocks import Block, first_true
from pipelines.measures.lots import Float64, Int64
from pipelines.measures.ranking import Bool
from trail.scan import HOUR_US, Op


@dataclass(frozen=True, slots=True)
class Delays:
    """Of m tampered trails of one type, each array (m,).

    Attributes:
        scans: scans of the trail from the evidence to the alert, 0 at once; infinite if never.
        hours: hours between them; infinite if never.
        in_time: bool, the alert came before the trail's first sale; a trail that is not sold is
            in time with any alert.
        possible: bool, the evidence itself came before that sale.
    """

    scans: Float64
    hours: Float64
    in_time: Bool
    possible: Bool


def delays(block: Block, flag: Bool, anomaly: int) -> Delays:
    """Delays of the alerts `flag`, bool (n,), for trails tampered with as type `anomaly`.

    From `evidence` (the first scan at which it can be known) to the first flagged scan at or after
    it. Controls are left out. A flag before the evidence is no alert on it.
    """
    told = (block.evidence & ~block.control) & (block.anomaly == anomaly)
    return delays_from(told, block, flag)


def delays_from(begin: Bool, block: Block, flag: Bool) -> Delays:
    """Delays from the first scan of each trail in `begin`, bool (n,), to the first flag from it."""
    size = len(block)
    start = first_true(begin, block.trail)
    start = start[start < size]
    index = np.arange(size)
    origin = np.full(int(block.trail[-1]) + 1 if size else 0, size)
    origin[block.trail[start]] = start
    after = index >= origin[block.trail] if size else np.zeros(0, dtype=bool)
    alert = first_true(flag & after, block.trail)[block.trail[start]]
    sale = first_true(block.op == Op.SALE, block.trail)[block.trail[start]]
    caught = alert < size
    hours = np.full(len(start), math.inf)
    hours[caught] = _hours(block, start[caught], alert[caught])
    return Delays(
        scans=np.where(caught, alert - start, math.inf),
        hours=hours,
        in_time=caught & (alert < sale),
        possible=start < sale,
    )


def _hours(block: Block, start: Int64, end: Int64) -> Float64:
    return (block.time_us[end] - block.time_us[start]) / HOUR_US


def summarise(found: Delays) -> dict[str, float]:
    """Trails, share caught, share caught before the sale and share where that was possible, and
    the median and P90 of the delay of those caught.
    """
    caught = np.isfinite(found.scans)
    return {
        "trails": len(caught),
        "caught": _mean(caught),
        "caught_before_sale": _mean(found.in_time),
        "possible_before_sale": _mean(found.possible),
        "scans_median": _quantile(found.scans[caught], 0.5),
        "scans_p90": _quantile(found.scans[caught], 0.9),
        "hours_median": _quantile(found.hours[caught], 0.5),
        "hours_p90": _quantile(found.hours[caught], 0.9),
    }


def _mean(mask: Bool) -> float:
    return float(mask.mean()) if len(mask) else math.nan


def _quantile(values: Float64, share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else math.nan
