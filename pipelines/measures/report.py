"""Every figure of one block as a tree: measure, then model, then type."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.measures.blocks import Block
from pipelines.measures.bootstrap import Interval, ap_replicates, holm, interval, macro
from pipelines.measures.business import business, percent
from pipelines.measures.calibration import brier, ece, equal_mass
from pipelines.measures.confusion import COLUMNS, ROWS, confusion
from pipelines.measures.controls import control_auc
from pipelines.measures.delay import delays, delays_from, summarise
from pipelines.measures.lots import Float32, Float64, Resamples, resample
from pipelines.measures.operating import count
from pipelines.measures.ranking import (
    Bool,
    average_precision,
    cut_at_fpr,
    precision_at_prevalence,
)
from pipelines.measures.settings import Settings
from pipelines.measures.thresholds import fpr_upper
from trail.scan import ANOMALIES

Tree = dict[str, Any]

BASELINE = "rules"
TUNED = "rules_tuned"
"""The rules, flagging from a threshold of the calibration part and not from their own."""

FPRS = {"0.1%": 0.001, "1%": 0.01, "5%": 0.05}
POSITIONS = {"1": (1, 1), "2-3": (2, 3), "4+": (4, math.inf)}
NO_PROBABILITY = ("rules",)
"""Models whose score is no probability, so that its calibration means nothing."""

CONTROL_DRAWS = 500


@dataclass(frozen=True, slots=True)
class Operating:
    """How a model flags: the scores it uses and its thresholds, float32 (5,)."""

    model: str
    threshold: Float32


def flags(block: Block, operating: Operating) -> Bool:
    """Flags of each type, bool (n, 5)."""
    return block.scores[operating.model] >= operating.threshold


def report(
    block: Block,
    operating: Mapping[str, Operating],
    settings: Settings,
    subtypes: Sequence[str],
) -> Tree:
    """All figures of `block`; numbers are floats, not a number where nothing is to be measured.

    Args:
        block: scans, truth and scores.
        operating: thresholds by the name under which they are shown; a model may have several.
        settings: costs, betas, prevalences, replicates.
        subtypes: names of the subtypes, by the index that `block.subtype` holds.
    """
    draws = resample(block.lot, settings.bootstrap, settings.seed)
    flagged = {name: flags(block, how) for name, how in operating.items()}
    return {
        **_sizes(block, draws),
        **_ranking(block, draws),
        "recall_at_fpr": _recall_at_fpr(block),
        "grades": _grades(block),
        "subtypes": _subtypes(block, subtypes),
        "controls": _controls(block, flagged, subtypes, settings),
        "operating": {
            name: _operating(block, how, flagged[name], draws, settings)
            for name, how in operating.items()
        },
        "delay": {
            name: {
                kind: summarise(delays(block, flag[:, k], k)) for k, kind in enumerate(ANOMALIES)
            }
            for name, flag in flagged.items()
        },
        "calibration": _calibration(block),
        "business": {name: business(block, flag, settings) for name, flag in flagged.items()},
        "confusion": {name: _confusion(block, flag) for name, flag in flagged.items()},
        "position": _positions(block),
    }


def _sizes(block: Block, draws: Resamples) -> Tree:
    trails = {}
    for k, kind in enumerate(ANOMALIES):
        mine = (block.anomaly == k) & ~block.control & block.cause
        trails[kind] = len(np.unique(block.trail[mine]))
    return {
        "scans": len(block),
        "trails": int(block.trail[-1]) + 1 if len(block) else 0,
        "lots": draws.lots,
        "days": block.days(),
        "anomalous_scans": {
            kind: int((block.target[:, k] == 1).sum()) for k, kind in enumerate(ANOMALIES)
        },
        "anomalous_trails": trails,
    }


def _ranking(block: Block, draws: Resamples) -> Tree:
    """AP and its macro mean, with intervals, and every paired difference of interest."""
    mid: dict[str, list[float]] = {}
    replicates: dict[str, list[Float64]] = {}
    for model, score in block.scores.items():
        mid[model], replicates[model] = [], []
        for k in range(len(ANOMALIES)):
            counted = block.target[:, k] >= 0
            positive = block.target[counted, k] == 1
            ranked, code = score[counted, k], draws.code[counted]
            mid[model].append(average_precision(ranked, positive))
            replicates[model].append(ap_replicates(ranked, positive, draws, code))
    means = {model: macro(replicates[model]) for model in mid}
    return {
        "map": {m: _bounds(interval(_mean(mid[m]), means[m])) for m in mid},
        "ap": {
            m: {
                kind: _bounds(interval(mid[m][k], replicates[m][k]))
                for k, kind in enumerate(ANOMALIES)
            }
            for m in mid
        },
        "gain": {
            f"{better}_vs_{worse}": _gain(
                mid[better], mid[worse], replicates[better], replicates[worse]
            )
            for better, worse in pairs(list(mid))
        },
    }


def pairs(models: Sequence[str]) -> list[tuple[str, str]]:
    """Which models are compared: each with the rules, and the learned ones with each other."""
    learned = [m for m in ("gbm", "lstm", "stack") if m in models]
    found = [(m, BASELINE) for m in models if m != BASELINE and BASELINE in models]
    return found + [(b, a) for i, a in enumerate(learned) for b in learned[i + 1 :]]


def _gain(
    better: list[float], worse: list[float], drawn: list[Float64], against: list[Float64]
) -> Tree:
    whole = interval(_mean(better) - _mean(worse), macro(drawn) - macro(against))
    single = [
        interval(b - w, d - a) for b, w, d, a in zip(better, worse, drawn, against, strict=True)
    ]
    adjusted = holm([one.p_value for one in single])
    return {
        "map": {**_bounds(whole), "p": whole.p_value},
        "ap": {
            kind: {**_bounds(one), "p": one.p_value, "p_holm": p}
            for kind, one, p in zip(ANOMALIES, single, adjusted, strict=True)
        },
    }


def _bounds(found: Interval) -> Tree:
    return {"low": found.low, "mid": found.mid, "high": found.high}


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def _recall_at_fpr(block: Block) -> Tree:
    tree: Tree = {}
    for name, fpr in FPRS.items():
        tree[name] = {
            model: {
                kind: _recall(score[block.target[:, k] == 1, k], _cut(block, score, k, fpr))
                for k, kind in enumerate(ANOMALIES)
            }
            for model, score in block.scores.items()
        }
    return tree


def _cut(block: Block, score: Float32, anomaly: int, fpr: float) -> float:
    return cut_at_fpr(score[block.target[:, anomaly] == 0, anomaly], fpr)


def _recall(anomalous: Float32, cut: float) -> float:
    return float(np.mean(anomalous > cut)) if len(anomalous) else math.nan


def _grades(block: Block) -> Tree:
    """Recall at 1 % FPR by model, type and grade."""
    tree: Tree = {}
    for model, score in block.scores.items():
        tree[model] = {}
        for k, kind in enumerate(ANOMALIES):
            cut = _cut(block, score, k, 0.01)
            bad = block.target[:, k] == 1
            tree[model][kind] = {
                str(grade): _recall(score[bad & (block.grade == grade), k], cut)
                for grade in range(4)
            }
    return tree


def _subtypes(block: Block, names: Sequence[str]) -> Tree:
    """Recall at 1 % FPR by type and subtype, for every model."""
    tree: Tree = {kind: {} for kind in ANOMALIES}
    for k, kind in enumerate(ANOMALIES):
        bad = block.target[:, k] == 1
        cuts = {model: _cut(block, score, k, 0.01) for model, score in block.scores.items()}
        for subtype in np.unique(block.subtype[bad]):
            mine = bad & (block.subtype == subtype)
            tree[kind][_name(names, int(subtype))] = {
                "grade": int(block.grade[mine][0]),
                "scans": int(mine.sum()),
                "trails": len(np.unique(block.trail[mine])),
                "recall": {
                    model: _recall(score[mine, k], cuts[model])
                    for model, score in block.scores.items()
                },
            }
    return tree


def _name(names: Sequence[str], subtype: int) -> str:
    return names[subtype] if 0 <= subtype < len(names) else "unnamed"


def _controls(
    block: Block, flagged: Mapping[str, Bool], names: Sequence[str], settings: Settings
) -> Tree:
    """AUC by control subtype; share of its trails told in the end, and hours from the cause."""
    tree: Tree = {kind: {} for kind in ANOMALIES}
    for k, kind in enumerate(ANOMALIES):
        mine = block.control & (block.anomaly == k)
        for subtype in np.unique(block.subtype[mine]):
            here = mine & (block.subtype == subtype)
            trails = np.unique(block.trail[here])
            told = {
                name: summarise(delays_from(here & block.cause, block, flag[:, k]))
                for name, flag in flagged.items()
            }
            found = {
                model: control_auc(
                    block, score[:, k], k, int(subtype), CONTROL_DRAWS, settings.seed
                )
                for model, score in block.scores.items()
            }
            tree[kind][_name(names, int(subtype))] = {
                "trails": len(trails),
                "auc": {
                    model: {"low": one.low, "mid": one.auc, "high": one.high}
                    for model, one in found.items()
                },
                "caught": {name: one["caught"] for name, one in told.items()},
                "hours_median": {name: one["hours_median"] for name, one in told.items()},
            }
    return tree


def _operating(
    block: Block, how: Operating, flag: Bool, draws: Resamples, settings: Settings
) -> Tree:
    tree: Tree = {}
    for k, kind in enumerate(ANOMALIES):
        target = block.target[:, k]
        found = count(flag[:, k], target)
        miss, alarm = settings.miss[kind], settings.false_alarm[kind]
        threshold = float(how.threshold[k])
        tree[kind] = {
            "threshold": threshold,
            "recall": found.recall,
            "precision": found.precision,
            "specificity": found.specificity,
            "f1": found.f_beta(1),
            "f_beta": found.f_beta(settings.betas[kind]),
            "accuracy": found.accuracy,
            "fpr": found.fpr,
            "fpr_upper95": fpr_upper(block.scores[how.model][:, k], target, draws, threshold)[1],
            "cost": found.cost(miss, alarm),
            "saving": found.saving(miss, alarm),
            "precision_at": {
                percent(p): precision_at_prevalence(found.recall, found.fpr, p)
                for p in settings.prevalences
            },
        }
    return tree


def _calibration(block: Block) -> Tree:
    tree: Tree = {}
    for model, score in block.scores.items():
        if model in NO_PROBABILITY:
            continue
        tree[model] = {}
        for k, kind in enumerate(ANOMALIES):
            counted = block.target[:, k] >= 0
            p, positive = score[counted, k], block.target[counted, k] == 1
            tree[model][kind] = {"brier": brier(p, positive), "ece": ece(equal_mass(p, positive))}
    return tree


def _confusion(block: Block, flag: Bool) -> Tree:
    table = confusion(flag, block.target)
    return {
        row: {column: float(table[i, j]) for j, column in enumerate(COLUMNS)}
        for i, row in enumerate(ROWS)
    }


def _positions(block: Block) -> Tree:
    """Average precision among the first, the second and third, and the later scans of trails."""
    tree: Tree = {}
    for name, (low, high) in POSITIONS.items():
        here = (block.position >= low) & (block.position <= high)
        tree[name] = {}
        for model, score in block.scores.items():
            values = {}
            for k, kind in enumerate(ANOMALIES):
                counted = here & (block.target[:, k] >= 0)
                values[kind] = average_precision(score[counted, k], block.target[counted, k] == 1)
            tree[name][model] = {"map": _mean(list(values.values())), "ap": values}
        tree[name]["scans"] = int(here.sum())
    return tree
