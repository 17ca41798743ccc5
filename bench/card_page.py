"""The benchmark card as a page: Markdown tables and plots."""

from __future__ import annotations

import io
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from bench import regret
from models.bundle import graded
from pipelines.measures import curves, figures
from pipelines.measures.blocks import Block
from pipelines.measures.card import explanation
from pipelines.measures.report import Tree
from pipelines.measures.settings import Settings
from serving.scorer import SURE
from trail.scan import ANOMALIES, Float32
from world.tampering import NAMES

MODELS: Final = ("rules", "svm", "gbm", "lstm", "stack")
SERVED: Final = "stack"
"""The model that answers in the service."""
NOMINAL: Final = 0.01
"""False positive rate that thresholds are chosen to keep."""


@dataclass(frozen=True)
class Carded:
    """What a card shows.

    Attributes:
        worlds: report of the injected block, by world; the first is the one to compare with.
        said: what each world is.
        base: the first world's block, for its curves.
        seeds: worlds behind each report.
        settings: section `evaluate` of params.yaml.
        about: what the models learned from.
        threshold: float32 (5,), the thresholds of the model that answers in the service.
        regret: the Bayes limit and the recalls, by class of distance.
        ways: rows of `calibrating.rows`, on the first world.
        explained: figures of explanations on the first world, by baseline and type.
    """

    worlds: Mapping[str, Tree]
    said: Mapping[str, str]
    base: Block
    seeds: int
    settings: Settings
    about: str
    threshold: Float32
    regret: Sequence[regret.Row]
    ways: Sequence[Sequence[str]]
    explained: Tree


def write(card: Carded, out: Path, command: str) -> None:
    """Write the page to `out`, its plots into `img/` beside it."""
    folder = out.parent / "img"
    folder.mkdir(parents=True, exist_ok=True)
    first = next(iter(card.worlds.values()))
    plots = {
        "card_worlds": worlds_figure(card.worlds),
        "card_recall": figures.recall_figure(first, "Recall at 1 % false positives, base world"),
        "card_reliability": figures.reliability_figure(curves.reliability_rows(card.base)),
    }
    for name, png in plots.items():
        (folder / f"{name}.png").write_bytes(png)
    out.write_text("\n\n".join(_sections(card, command)) + "\n", encoding="utf-8")


def worlds_figure(worlds: Mapping[str, Tree]) -> bytes:
    """Macro average precision with its interval, by world and model."""
    with mpl.rc_context(figures.STYLE):
        figure = Figure(figsize=(7.5, 0.5 + 0.55 * len(worlds)), layout="constrained")
        axes = figure.subplots()
        for i, tree in enumerate(worlds.values()):
            for j, model in enumerate(MODELS):
                found = tree["map"][model]
                y = i + 0.13 * (j - 2)
                axes.plot([found["low"], found["high"]], [y, y], color=figures.COLOURS[model], lw=2)
                axes.plot(
                    found["mid"],
                    y,
                    "o",
                    ms=4.5,
                    color=figures.COLOURS[model],
                    label=None if i else model,
                )
        axes.set(xlim=(0, 1), xlabel="macro average precision, 95 % interval by lot")
        axes.set_yticks(range(len(worlds)), list(worlds))
        axes.invert_yaxis()
        figure.legend(loc="outside upper center", ncols=len(MODELS))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=figures.DPI, metadata={"Software": None})
        return buffer.getvalue()


def _sections(card: Carded, command: str) -> list[str]:
    first = next(iter(card.worlds.values()))
    name = next(iter(card.worlds))
    return [
        "# Benchmark card",
        f"`{command}` made this page ({platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}): models of one world, {card.about}, score others. "
        f"{card.seeds} seed(s) of each world; `{name}` has {first['scans']:,} scans. "
        "Tampering: 2 % of EPCs of each type; boxes are inferred. Intervals are 95 %, by paired "
        "bootstrap over lots. No parameter, threshold or model was chosen on these worlds: they "
        "were scored once, for this page.",
        "![macro average precision by world](img/card_worlds.png)",
        "## Worlds",
        table(
            ["world", "what it is", *MODELS],
            [
                [world, card.said[world], *(_interval(tree["map"][m]) for m in MODELS)]
                for world, tree in card.worlds.items()
            ],
        ),
        _drops(card.worlds),
        f"Average precision of {SERVED} by type:",
        table(
            ["world", *ANOMALIES],
            [
                [world, *(_number(tree["ap"][SERVED][k]["mid"]) for k in ANOMALIES)]
                for world, tree in card.worlds.items()
            ],
        ),
        f"## Types, `{name}`",
        table(
            ["type", *MODELS],
            [[k, *(_interval(first["ap"][m][k]) for m in MODELS)] for k in ANOMALIES],
        ),
        "## Is one model better than another?",
        table(
            ["pair", "macro AP", "p", *ANOMALIES],
            [
                [
                    pair.replace("_vs_", " over "),
                    _interval(gain["map"], sign=True),
                    f"{gain['map']['p']:.3f}",
                    *(f"{gain['ap'][k]['mid']:+.3f}" for k in ANOMALIES),
                ]
                for pair, gain in first["gain"].items()
            ],
        ),
        f"## Grades: recall at 1 % false positives, `{name}`, {SERVED}",
        table(
            ["type", "0 blatant", "1", "2", "3 only context tells"],
            [
                [k, *(_number(first["grades"][SERVED][k][str(g)]) for g in range(4))]
                for k in ANOMALIES
            ],
        ),
        "![recall by subtype](img/card_recall.png)",
        "## Leg times alone: how far from the best that can be done",
        f"Recall of `{regret.SUBTYPE}` (0.35-0.55 of the route's usual time) at 1 % false "
        "positives among honest legs as long, by beeline. The Bayes limit is that of a test that "
        "knows both densities of a leg's time; models see more than that time, so regret may be "
        "negative.",
        table(
            ["km", "honest legs", "tampered", "Bayes limit", *MODELS, f"regret of {SERVED}"],
            regret.table(card.regret, SERVED),
        ),
        f"## Positions: macro AP by place of the scan in its trail, `{name}`",
        table(
            ["position", *MODELS],
            [
                [p, *(_number(first["position"][p][m]["map"]) for m in MODELS)]
                for p in first["position"]
            ],
        ),
        f"## False positives of {SERVED} at its thresholds (nominal: at most {NOMINAL:.0%})",
        "Rate, and its upper 95 % bound by lot.",
        table(
            ["world", *ANOMALIES],
            [[world, *_rates(tree)] for world, tree in card.worlds.items()],
        ),
        f"## Calibration, `{name}`",
        table(
            ["model", *(f"ECE {k}" for k in ANOMALIES)],
            [
                [m, *(f"{first['calibration'][m][k]['ece']:.5f}" for k in ANOMALIES)]
                for m in first["calibration"]
            ],
        ),
        "![reliability](img/card_reliability.png)",
        f"Ways to calibrate the log-odds of {SERVED}, fitted on the calibration lots and asked "
        f"about `{name}`. Log loss is the sum over the types, in nats per 1,000 scans.",
        table(["way", "macro AP", "log loss", *(f"ECE {k}" for k in ANOMALIES)], card.ways),
        f"## How sure it is: verdicts of {SERVED}, `{name}`",
        "Scores are 0-100 and flagged from 50 on. Nearer to that than "
        f"{SURE - 50:.0f} the service calls its confidence medium: an analyst may want to look.",
        table(["verdict", "scans", "share of them anomalous"], bands(card.base, card.threshold)),
        f"## Explanations, `{name}`",
        explanation(card.explained),
        f"## Controls: AUC of what cannot be told, `{name}`, {SERVED}",
        "Caught: trails flagged at the thresholds. A whole box or pallet is one case, so few lots "
        "hold many trails.",
        _controls(card.base, first),
        *_unseen(card.worlds),
        "## What it cannot do",
        _limits(card.worlds, first),
    ]


def bands(block: Block, threshold: Float32) -> list[list[str]]:
    """Clear flags, what is near the threshold, and clear all-clears: scans, and share anomalous."""
    top = graded(block.scores[SERVED], threshold).max(axis=1)
    bad, honest = (block.target == 1).any(axis=1), (block.target == 0).all(axis=1)
    rows = []
    for name, there in (
        (f"flagged, {SURE:.0f} or more", top >= SURE),
        ("near the threshold", (top > 100 - SURE) & (top < SURE)),
        (f"all clear, {100 - SURE:.0f} or less", top <= 100 - SURE),
    ):
        wrong, right = int((there & bad).sum()), int((there & honest).sum())
        share = wrong / (wrong + right) if wrong + right else float("nan")
        rows.append([name, f"{wrong + right:,}", f"{share:.3%}"])
    return rows


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _interval(found: Mapping[str, float], sign: bool = False) -> str:
    spec = "+.3f" if sign else ".3f"
    return f"{found['mid']:{spec}} [{found['low']:{spec}}, {found['high']:{spec}}]"


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.3f}"


def _rates(tree: Tree) -> list[str]:
    of = tree["operating"][SERVED]
    return [f"{of[k]['fpr']:.3%} (≤ {of[k]['fpr_upper95']:.3%})" for k in ANOMALIES]


def _drops(worlds: Mapping[str, Tree]) -> str:
    names = list(worlds)
    base = worlds[names[0]]["map"][SERVED]["mid"]
    said = [
        f"{name} {worlds[name]['map'][SERVED]['mid'] - base:+.3f}"
        for name in names[1:]
        if name != "W7"
    ]
    return f"Macro AP of {SERVED} against `{names[0]}`: " + (", ".join(said) or "-") + "."


def _controls(base: Block, first: Tree) -> str:
    rows: list[list[str]] = []
    for kind in ANOMALIES:
        for subtype, found in first["controls"][kind].items():
            lots = len(np.unique(base.lot[base.subtype == NAMES.index(subtype)]))
            auc, caught = found["auc"][SERVED], found["caught"][SERVED]
            told = [str(found["trails"]), str(lots), _interval(auc), f"{caught:.1%}"]
            rows.append([f"`{subtype}`", *told])
    return table(["control", "trails", "lots", "AUC", "caught"], rows)


def _unseen(worlds: Mapping[str, Tree]) -> list[str]:
    if "W7" not in worlds:
        return []
    rows: list[list[str]] = []
    for kind in ANOMALIES:
        for subtype, found in worlds["W7"]["subtypes"][kind].items():
            recalls = (_number(found["recall"][m]) for m in MODELS)
            rows.append([f"`{subtype}`", str(found["trails"]), *recalls])
    return [
        "## Kinds of tampering never seen in training: recall at 1 % false positives",
        "The world that was trained on hides a few of them, as real data may, and nobody has "
        "labelled them: there they count as honest. [Ablations](ablations.md) has kinds that were "
        "left out of training altogether.",
        table(["subtype", "trails", *MODELS], rows),
    ]


def _limits(worlds: Mapping[str, Tree], first: Tree) -> str:
    weak: list[tuple[float, str]] = []
    for kind in ANOMALIES:
        for subtype, found in first["subtypes"][kind].items():
            weak.append((found["recall"][SERVED], subtype))
    lowest = ", ".join(f"`{name}` {recall:.2f}" for recall, name in sorted(weak)[:3])
    worst = {kind: first["ap"][SERVED][kind]["mid"] for kind in ANOMALIES}
    kind = min(worst, key=lambda k: worst[k])
    loud = [
        f"{world} {k} {tree['operating'][SERVED][k]['fpr']:.2%}"
        for world, tree in worlds.items()
        for k in ANOMALIES
        if tree["operating"][SERVED][k]["fpr"] > 2 * NOMINAL
    ]
    return "\n".join(
        [
            f"- The kinds that it finds least often: {lowest} (recall at 1 % false positives).",
            f"- Its weakest type is {kind}, with an average precision of {worst[kind]:.3f}.",
            "- False positives beyond twice the nominal rate: " + (", ".join(loud) or "none") + ".",
            "- Two anomalies in one scan are often told as one: no training scan has two.",
            "- It learned from tampering that a program made up; nobody knows how real tampering "
            "looks where nobody has found it.",
        ]
    )
