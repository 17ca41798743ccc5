"""The table that a person sees at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.measures.headline import main_model
from trail.scan import ANOMALIES

NAMES = {
    "rules": "rules",
    "rules_tuned": "rules, tuned",
    "svm": "one-class SVM",
    "gbm": "gradient boosting",
    "lstm": "LSTM",
    "stack": "stack",
}
"""What a person calls a model."""


def summary(metrics: Mapping[str, Any]) -> str:
    """Models x types, from the tree of metrics.json: AP, mAP with its interval, gain."""
    injected = metrics["injected"]
    main = main_model(injected)
    lines = _table("Average precision, injected tampering (95 % by lot)", injected)
    if metrics.get("natural"):
        lines += ["", *_table("Average precision, natural tampering", metrics["natural"])]
    else:
        lines += ["", "Natural tampering: no answers with these data, not measured."]
    bounds = ", ".join(f"{kind} {_percent(metrics['fpr_upper95'][kind])}" for kind in ANOMALIES)
    lines += ["", f"False positives of the {NAMES.get(main, main)}, upper 95 % bound: {bounds}"]
    return "\n".join(lines)


def gain_text(block: Mapping[str, Any], model: str) -> str:
    """The gain of `model` over the rules in mAP, "+0.710 [+0.690, +0.730]"; "" if none."""
    found = block["gain"].get(f"{model}_vs_rules")
    if not found or found["map"]["mid"] is None:
        return ""
    gain = found["map"]
    if gain["low"] is None:
        return f"{gain['mid']:+.3f}"
    return f"{gain['mid']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def bounds_text(one: Mapping[str, float | None]) -> str:
    """An estimate with its interval, "0.958 [0.951, 0.964]"; "-" if there is none."""
    if one["mid"] is None:
        return "-"
    if one["low"] is None:
        return f"{one['mid']:.3f}"
    return f"{one['mid']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"


def _table(title: str, block: Mapping[str, Any]) -> list[str]:
    head = ["", *ANOMALIES, "mAP", "gain over the rules"]
    body = [
        [
            NAMES.get(model, model),
            *(_number(by_type[kind]["mid"]) for kind in ANOMALIES),
            bounds_text(block["map"][model]),
            gain_text(block, model),
        ]
        for model, by_type in block["ap"].items()
    ]
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    lines = [title]
    for row in [head, *body]:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        lines.append("  ".join([*cells, row[-1]]).rstrip())
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"
