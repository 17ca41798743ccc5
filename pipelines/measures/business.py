"""What it means for the people: alerts, minutes, value, shipments."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from pipelines.measures.blocks import Block
from pipelines.measures.delay import delays
from pipelines.measures.lots import Int64
from pipelines.measures.operating import Counts
from pipelines.measures.ranking import Bool, precision_at_prevalence
from pipelines.measures.settings import Settings
from trail.scan import ANOMALIES


def boxes(block: Block) -> Int64:
    """Number of each scan's shipment, int64 (n,): what one lot does at one second in one operation.

    Items that move together share a timestamp; an alert is raised once for a shipment, not for
    each of its items.
    """
    order = np.lexsort((block.op, block.time_us, block.lot))
    keys = [column[order] for column in (block.lot, block.time_us, block.op)]
    new = np.zeros(len(order), dtype=bool)
    for key in keys:
        new[1:] |= key[1:] != key[:-1]
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.cumsum(new)
    return number


def any_counts(flag: Bool, block: Block) -> Counts:
    """Counts of "any type is flagged" against "some type is the truth", on scans that count."""
    bad = (block.target == 1).any(axis=1)
    honest = (block.target == 0).all(axis=1)
    raised = flag.any(axis=1)
    hits, alarms = int((raised & bad).sum()), int((raised & honest).sum())
    return Counts(hits, int(bad.sum()) - hits, alarms, int(honest.sum()) - alarms)


def alerts_a_day(counts: Counts, scans_a_day: float, prevalence: float) -> float:
    """scans a day * (p R + (1 - p) FPR): alerts where a share p of scans is anomalous."""
    recall = 0.0 if math.isnan(counts.recall) else counts.recall
    fpr = 0.0 if math.isnan(counts.fpr) else counts.fpr
    return scans_a_day * (prevalence * recall + (1 - prevalence) * fpr)


def business(block: Block, flag: Bool, settings: Settings) -> dict[str, float | dict[str, float]]:
    """The workload and the worth of the flags, bool (n, 5).

    Alerts are counted by shipment (`boxes`); a shipment is blocked wrongly if all its scans are
    honest and one is flagged. Value saved = value of a product * tampered trails told before their
    sale; at stake = those whose evidence comes before it. Minutes a true hit = minutes an alert
    takes * alerts / alerts that are true; at prevalence p, minutes / precision(p). Scores of scans
    that do not count raise alerts of neither kind.
    """
    bad = (block.target == 1).any(axis=1)
    honest = (block.target == 0).all(axis=1)
    raised = flag.any(axis=1)
    box = boxes(block)
    number = int(box.max()) + 1 if len(box) else 0
    true, tampered = np.zeros(number, dtype=bool), np.zeros(number, dtype=bool)
    alerted = np.zeros(number, dtype=bool)
    true[box[raised & bad]] = True
    tampered[box[~honest]] = True
    alerted[box[raised & (bad | honest)]] = True
    wrong = alerted & ~tampered
    days = block.days()
    counts = any_counts(flag, block)
    told = [delays(block, flag[:, k], k) for k in range(len(ANOMALIES))]
    saved = settings.value_of_product * sum(float(d.in_time.sum()) for d in told)
    stake = settings.value_of_product * sum(float(d.possible.sum()) for d in told)
    minutes = settings.analyst_minutes_per_alert
    hits = int(true.sum())
    return {
        "days": days,
        "shipments": number,
        "alerts_a_day": float(alerted.sum()) / days,
        "alerts_a_day_by_scan": float((raised & (bad | honest)).sum()) / days,
        "minutes_a_true_hit": minutes * float(alerted.sum()) / hits if hits else math.nan,
        "shipments_blocked_wrongly": int(wrong.sum()),
        "share_blocked_wrongly": float(wrong.sum()) / max(1, int((~tampered).sum())),
        "value_saved": saved,
        "value_at_stake": stake,
        "share_of_value_saved": saved / stake if stake else math.nan,
        "at_prevalence": _at_prevalence(counts, len(block) / days, settings.prevalences, minutes),
    }


def _at_prevalence(
    counts: Counts, scans_a_day: float, prevalences: Sequence[float], minutes: float
) -> dict[str, float]:
    figures: dict[str, float] = {}
    for share in prevalences:
        precision = precision_at_prevalence(counts.recall, counts.fpr, share)
        figures[f"alerts_a_day_at_{percent(share)}"] = alerts_a_day(counts, scans_a_day, share)
        figures[f"minutes_a_true_hit_at_{percent(share)}"] = (
            minutes / precision if precision > 0 else math.nan
        )
    return figures


def percent(share: float) -> str:
    """A share as it stands in a key: 0.005 is "0.5%"."""
    return f"{share * 100:g}%"
