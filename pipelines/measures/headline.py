"""metrics.json: the headline first, every figure of the blocks after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pipelines.measures.report import BASELINE, Tree
from trail.scan import ANOMALIES

MAIN = ("stack", "lstm")
"""Models that the product is about: the one that answers is the first that there is."""


def main_model(tree: Mapping[str, Any]) -> str:
    """The model that the headline compares with the rules: the one that answers, or the last."""
    models = list(tree["map"])
    return next((name for name in MAIN if name in models), models[-1])


def headline(injected: Tree, natural: Tree | None) -> Tree:
    """The tree of metrics.json: figures that are looked at first, then both blocks whole.

    `map`, `ap`, `recall_at_fpr1` are of the injected block; so are those at the operating
    thresholds, where "rules" flag from their own threshold and "rules_tuned" from that of the
    calibration part. Without natural answers `map_natural` and `natural` are empty.
    """
    main = main_model(injected)
    operating = injected["operating"]
    tree: Tree = {
        "map": {model: one["mid"] for model, one in injected["map"].items()},
        "map_natural": {m: one["mid"] for m, one in natural["map"].items()} if natural else {},
        "ap": {
            model: {kind: one["mid"] for kind, one in by_type.items()}
            for model, by_type in injected["ap"].items()
        },
        "recall_at_fpr1": injected["recall_at_fpr"]["1%"],
    }
    for measure in ("specificity", "recall", "precision", "f1", "f_beta", "accuracy"):
        tree[measure] = {
            model: {kind: by_type[kind][measure] for kind in ANOMALIES}
            for model, by_type in operating.items()
        }
    tree["fpr_upper95"] = {kind: operating[main][kind]["fpr_upper95"] for kind in ANOMALIES}
    if f"{main}_vs_{BASELINE}" in injected["gain"]:
        gain = injected["gain"][f"{main}_vs_{BASELINE}"]["map"]
        tree["vs_rules"] = {"map_gain": {key: gain[key] for key in ("low", "mid", "high")}}
    tree["injected"] = injected
    tree["natural"] = natural or {}
    return tree


def rounded(value: Any) -> Any:
    """The same tree with four significant digits (whole numbers from 1000 on), fit for JSON.

    Figures are stable to about the fifth digit between machines; a file that changes with the
    machine would make every comparison differ. What is not a number becomes null.
    """
    if isinstance(value, dict):
        return {str(key): rounded(one) for key, one in value.items()}
    if isinstance(value, bool | int | str) or value is None:
        return value
    number = float(value)
    if not math.isfinite(number):
        return None
    if abs(number) >= 1000:
        return round(number)
    return float(f"{number:.4g}")
