"""Curves as tables, thinned to what a plot can show: the data behind the plots."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.measures.blocks import Block
from pipelines.measures.calibration import equal_width
from pipelines.measures.delay import delays
from pipelines.measures.lots import Float32, Float64, Int64
from pipelines.measures.ranking import Bool, precision_recall
from pipelines.measures.report import NO_PROBABILITY
from pipelines.measures.settings import Settings
from trail.scan import ANOMALIES

Row = dict[str, str | float | int]

PR_POINTS = 120
COST_POINTS = 101
DELAY_HOURS = (0, 1, 3, 6, 12, 24, 48, 96, 192, 384)
NONE = "none"


def pr_rows(block: Block) -> list[Row]:
    """Precision against recall: type, model, recall, precision; recall rises within a curve."""
    rows: list[Row] = []
    for k, kind in enumerate(ANOMALIES):
        counted = block.target[:, k] >= 0
        positive = block.target[counted, k] == 1
        if not positive.any():
            continue
        for model, score in block.scores.items():
            recall, precision = precision_recall(score[counted, k], positive)
            for at in thinned(recall, PR_POINTS):
                rows.append(
                    {
                        "type": kind,
                        "model": model,
                        "recall": float(recall[at]),
                        "precision": float(precision[at]),
                    }
                )
    return rows


def thinned(rising: Float64, points: int) -> Int64:
    """Indices of about `points` values evenly spread over the range of `rising`, both ends too."""
    if not len(rising):
        return np.zeros(0, dtype=np.int64)
    wanted = np.linspace(rising[0], rising[-1], points)
    at = np.searchsorted(rising, wanted, side="left")
    return np.unique(np.concatenate([[0], np.minimum(at, len(rising) - 1)])).astype(np.int64)


def reliability_rows(block: Block) -> list[Row]:
    """Share of anomalous scans against the probability given: model, type, both, scans."""
    rows: list[Row] = []
    for model, score in block.scores.items():
        if model in NO_PROBABILITY:
            continue
        for k, kind in enumerate(ANOMALIES):
            counted = block.target[:, k] >= 0
            bins = equal_width(score[counted, k], block.target[counted, k] == 1)
            for mean, share, number in zip(bins.mean, bins.share, bins.number, strict=True):
                rows.append(
                    {
                        "model": model,
                        "type": kind,
                        "predicted": float(mean),
                        "observed": float(share),
                        "scans": int(number),
                    }
                )
    return rows


def cost_rows(block: Block, settings: Settings) -> list[Row]:
    """Cost against the threshold, as a share of the cheaper of flagging none and all."""
    rows: list[Row] = []
    thresholds = np.linspace(0, 1, COST_POINTS, dtype=np.float32)
    for k, kind in enumerate(ANOMALIES):
        bad, honest = block.target[:, k] == 1, block.target[:, k] == 0
        miss, alarm = settings.miss[kind], settings.false_alarm[kind]
        blind = min(miss * bad.sum(), alarm * honest.sum())
        if not blind:
            continue
        for model, score in block.scores.items():
            missed = _below(score[bad, k], thresholds)
            alarmed = honest.sum() - _below(score[honest, k], thresholds)
            share = (miss * missed + alarm * alarmed) / blind
            for threshold, cost in zip(thresholds, share, strict=True):
                rows.append(
                    {
                        "model": model,
                        "type": kind,
                        "threshold": float(threshold),
                        "cost_share": float(cost),
                    }
                )
    return rows


def _below(score: Float32, thresholds: Float32) -> Int64:
    return np.searchsorted(np.sort(score), thresholds, side="left").astype(np.int64)


def confusion_rows(block: Block, score: Float32, threshold: Float32) -> list[Row]:
    """One row a tampered scan and a wrongly flagged honest one: actual, predicted.

    Predicted is the flagged type that exceeds its threshold by most, as a share of what is left
    above it. Honest scans that are not flagged, nearly all, are left out.
    """
    room = np.maximum(1 - threshold, np.float32(1e-6))
    excess = np.where(score >= threshold, (score - threshold) / room, -np.inf)
    flagged = (score >= threshold).any(axis=1)
    predicted = np.where(flagged, excess.argmax(axis=1), len(ANOMALIES))
    names = (*ANOMALIES, NONE)
    rows: list[Row] = []
    for k, kind in enumerate(ANOMALIES):
        chosen = predicted[block.target[:, k] == 1]
        rows += [{"actual": kind, "predicted": names[int(at)]} for at in chosen]
    honest = (block.target == 0).all(axis=1) & flagged
    return rows + [{"actual": "honest", "predicted": names[int(at)]} for at in predicted[honest]]


def delay_rows(block: Block, flagged: Mapping[str, Bool]) -> list[Row]:
    """Share of the tampered trails told within some hours of the evidence: model, type, both."""
    rows: list[Row] = []
    for model, flag in flagged.items():
        for k, kind in enumerate(ANOMALIES):
            hours = delays(block, flag[:, k], k).hours
            if not len(hours):
                continue
            for limit in DELAY_HOURS:
                told = float((hours <= limit).mean())
                rows.append({"model": model, "type": kind, "hours": limit, "told": told})
    return rows


def grade_rows(tree: Mapping[str, Any]) -> list[Row]:
    """Recall at 1 % false positives, from the report of a block: model, type, grade, recall."""
    return [
        {"model": model, "type": kind, "grade": int(grade), "recall": recall}
        for model, by_type in tree["grades"].items()
        for kind, by_grade in by_type.items()
        for grade, recall in by_grade.items()
        if recall is not None and not math.isnan(recall)
    ]


def ap_rows(tree: Mapping[str, Any]) -> list[Row]:
    """Average precision with its interval, from the report of a block: model, type and bounds."""
    return [
        {"model": model, "type": kind, "ap": one["mid"], "low": one["low"], "high": one["high"]}
        for model, by_type in tree["ap"].items()
        for kind, one in by_type.items()
    ]


def table(rows: Sequence[Row]) -> str:
    """Rows as CSV with LF and four decimals; an empty sequence is an empty text."""
    if not rows:
        return ""
    lines = [",".join(rows[0])]
    lines += [",".join(_cell(value) for value in row.values()) for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: str | float | int) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return str(value)
