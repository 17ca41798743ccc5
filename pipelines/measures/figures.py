"""Plots as PNG bytes, the same bytes for the same figures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipelines.measures.confusion import COLUMNS, ROWS
from pipelines.measures.curves import DELAY_HOURS, Row
from pipelines.measures.explanations import BASELINES, HIT, REMOVED, TOP
from pipelines.measures.summary import NAMES
from trail.scan import ANOMALIES

# Okabe & Ito's palette, which colour-blind people can tell apart.
COLOURS = {
    "rules": "#7f7f7f",
    "rules_tuned": "#b0b0b0",
    "svm": "#e69f00",
    "gbm": "#0072b2",
    "lstm": "#d55e00",
    "stack": "#009e73",
}
OTHER = "#cc79a7"
INK = "#2b2b2b"
FAINT = "#d9d9d9"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.edgecolor": "#8a8a8a",
    "axes.labelcolor": INK,
    "axes.titlesize": 10.0,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
}
DPI = 130


def pr_figure(rows: Sequence[Row], ap: Mapping[str, Any]) -> bytes:
    """Precision against recall by type, every model; `ap` is the `ap` of a block's report."""
    with mpl.rc_context(STYLE):
        figure, panels, spare = _panels()
        for kind, axes in zip(ANOMALIES, panels, strict=True):
            for model in ap:
                x, y = _series(rows, kind, model, "recall", "precision")
                if len(x):
                    axes.plot(x, y, color=_colour(model), lw=1.7, drawstyle="steps-pre")
            axes.set(title=kind, xlim=(0, 1), ylim=(0, 1.03), xlabel="recall", ylabel="precision")
        _legend(spare, list(ap), "Injected tampering, test split")
        return _png(figure)


def reliability_figure(rows: Sequence[Row]) -> bytes:
    """Share of anomalous scans against the probability given, by type."""
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    with mpl.rc_context(STYLE):
        figure, panels, spare = _panels()
        for kind, axes in zip(ANOMALIES, panels, strict=True):
            axes.plot([0, 1], [0, 1], color=FAINT, lw=1.2, zorder=1)
            for model in models:
                x, y = _series(rows, kind, model, "predicted", "observed")
                scans, _ = _series(rows, kind, model, "scans", "scans")
                axes.plot(x, y, color=_colour(model), lw=1.2, zorder=2)
                size = 8 + 10 * np.log10(np.maximum(scans, 1))
                axes.scatter(x, y, s=size, color=_colour(model), zorder=3, clip_on=False)
            axes.set(title=kind, xlim=(0, 1), ylim=(0, 1.03))
            axes.set(xlabel="probability given", ylabel="share anomalous")
        _legend(spare, models, "Larger dots: more scans.\nOn the line: it means what it says.")
        return _png(figure)


def cost_figure(rows: Sequence[Row], thresholds: Mapping[str, Mapping[str, float]]) -> bytes:
    """Cost against the threshold by type; dots mark the operating thresholds by model and type."""
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    with mpl.rc_context(STYLE):
        figure, panels, spare = _panels()
        for kind, axes in zip(ANOMALIES, panels, strict=True):
            axes.axhline(1, color="#8a8a8a", lw=1, ls=(0, (4, 3)))
            for model in models:
                x, y = _series(rows, kind, model, "threshold", "cost_share")
                if not len(x):
                    continue
                axes.plot(x, y, color=_colour(model), lw=1.7)
                mark = thresholds.get(model, {}).get(kind)
                if mark is not None and mark <= 1:
                    at = float(np.interp(mark, x, y))
                    axes.plot(mark, at, "o", ms=6, color=_colour(model), mec="white", zorder=4)
            axes.set(title=kind, xlim=(0, 1), ylim=(0, 1.6), xlabel="threshold")
            axes.set_ylabel("cost / blind cost")
        note = "Dashed: flagging none or all,\nwhichever is cheaper.\nDots: operating thresholds."
        _legend(spare, models, note)
        return _png(figure)


def confusion_figure(table: Mapping[str, Mapping[str, float | None]], model: str) -> bytes:
    """Which type is flagged when which is the truth, from `confusion` of a block's report."""
    values = [[table[row][column] for column in COLUMNS] for row in ROWS]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.2, 4.8), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        _heat(axes, values, ROWS, COLUMNS)
        axes.set(xlabel="flagged", ylabel="truth")
        axes.set_title(f"{_called(model)}: share of scans flagged", pad=10)
        return _png(figure)


def ap_figure(injected: Mapping[str, Any], natural: Mapping[str, Any] | None) -> bytes:
    """Average precision with 95 % intervals by type and model, each block apart."""
    blocks = [("Injected tampering", injected)]
    if natural:
        blocks.append(("Natural tampering", natural))
    models = list(injected["ap"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 2.9 * len(blocks) + 0.4), dpi=DPI, layout="constrained")
        for place, (title, block) in enumerate(blocks):
            axes = figure.add_subplot(len(blocks), 1, place + 1)
            for i, model in enumerate(models):
                found = [*(block["ap"][model][kind] for kind in ANOMALIES), block["map"][model]]
                _bars(axes, found, i, len(models), model)
            axes.set_xticks(range(len(ANOMALIES) + 1), [*ANOMALIES, "mean"])
            axes.set(title=title, ylim=(0, 1.05), ylabel="average precision")
            axes.grid(visible=False, axis="x")
            axes.axvline(len(ANOMALIES) - 0.5, color=FAINT, lw=1)
        figure.legend(
            handles=_handles(models), loc="outside lower center", ncols=len(models), fontsize=9
        )
        return _png(figure)


def _bars(axes: Axes, found: Sequence[Any], at: int, models: int, model: str) -> None:
    width = 0.8 / models
    for x, one in enumerate(found):
        if one["mid"] is None:
            continue
        middle = x - 0.4 + width * (at + 0.5)
        axes.bar(middle, one["mid"], width * 0.92, color=_colour(model))
        if one["low"] is not None:
            axes.plot([middle, middle], [one["low"], one["high"]], color=INK, lw=1.1)


def recall_figure(block: Mapping[str, Any], title: str) -> bytes:
    """Recall at 1 % false positives, one row a subtype, one column a model."""
    models = list(block["ap"])
    rows, values = [], []
    for kind in ANOMALIES:
        found = sorted(block["subtypes"][kind].items(), key=lambda one: (one[1]["grade"], one[0]))
        for name, one in found:
            rows.append(
                f"{kind}: {name.replace('_', ' ')} (grade {one['grade']}, n {one['scans']})"
            )
            values.append([one["recall"][model] for model in models])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.4, 1.3 + 0.3 * max(1, len(rows))), dpi=DPI, layout="constrained")
        axes = figure.add_subplot()
        if rows:
            _heat(axes, values, rows, [_called(model) for model in models])
        axes.set_title(title, loc="left", pad=10)
        return _png(figure)


def grades_figure(block: Mapping[str, Any]) -> bytes:
    """Recall at 1 % false positives by type and grade, a panel a model."""
    models = list(block["grades"])
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(2.5 * len(models) + 1.2, 3.1), dpi=DPI, layout="constrained")
        for i, model in enumerate(models):
            axes = figure.add_subplot(1, len(models), i + 1)
            values = [list(block["grades"][model][kind].values()) for kind in ANOMALIES]
            _heat(axes, values, ANOMALIES if i == 0 else [""] * len(ANOMALIES), "0123", turn=False)
            axes.set(title=_called(model), xlabel="grade")
        return _png(figure)


def delay_figure(rows: Sequence[Row], models: Sequence[str]) -> bytes:
    """Share of tampered trails told within some hours of the first evidence, by type."""
    with mpl.rc_context(STYLE):
        figure, panels, spare = _panels()
        for kind, axes in zip(ANOMALIES, panels, strict=True):
            for model in models:
                _, y = _series(rows, kind, model, "hours", "told")
                if len(y):
                    axes.plot(np.arange(len(y)), y, color=_colour(model), lw=1.7, marker="o", ms=3)
            axes.set_xticks(range(len(DELAY_HOURS)), [_span(hours) for hours in DELAY_HOURS])
            axes.tick_params(axis="x", labelsize=7.5)
            axes.set(title=kind, ylim=(0, 1.03), xlabel="time since the evidence")
            axes.set_ylabel("share of trails told")
        _legend(spare, models, "At the operating thresholds")
        return _png(figure)


def explanation_figure(rows: Sequence[Row], found: Mapping[str, Any]) -> bytes:
    """Median probability left as features are removed, by type; `found` is `explanation` of
    metrics.json.
    """
    colours = dict(zip(BASELINES, (COLOURS["lstm"], COLOURS["gbm"]), strict=True))
    with mpl.rc_context(STYLE):
        figure, panels, spare = _panels()
        for kind, axes in zip(ANOMALIES, panels, strict=True):
            for baseline, colour in colours.items():
                mine = [r for r in rows if (r["type"], r["baseline"]) == (kind, baseline)]
                x = [int(row["removed"]) for row in mine]
                # The random features are the same for either baseline.
                axes.plot(x, [row["random"] for row in mine], color=COLOURS["rules"], lw=1.7)
                axes.plot(x, [row["first"] for row in mine], color=colour, lw=1.7, marker="o", ms=3)
            axes.axvline(TOP, color=FAINT, lw=1, zorder=1)
            axes.set_xticks(REMOVED)
            axes.set(title=kind, ylim=(0, 1.03), xlabel="features removed", ylabel="probability")
        handles = [
            Line2D([], [], color=colour, lw=4, label=f"first, against {baseline}")
            for baseline, colour in colours.items()
        ]
        handles.append(Line2D([], [], color=COLOURS["rules"], lw=4, label="random"))
        spare.legend(handles=handles, loc="upper left", fontsize=10, labelspacing=0.7)
        lines = [f"Hit@{TOP} corrected, localisation; {BASELINES[0]}:"]
        for kind, one in found[BASELINES[0]].items():
            lines.append(f"{kind} {_said(one[f'{HIT}_corrected'])}, {_said(one['localisation'])}")
        note = "\n".join(lines)
        spare.text(
            0.04, 0.04, note, transform=spare.transAxes, fontsize=8.5, color="#5a5a5a", va="bottom"
        )
        return _png(figure)


def _said(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _span(hours: int) -> str:
    if hours == 0:
        return "0"
    return f"{hours}h" if hours < 24 else f"{hours // 24}d"


def _panels() -> tuple[Figure, list[Axes], Axes]:
    """Five panels and a sixth for the legend."""
    figure = Figure(figsize=(9.4, 5.6), dpi=DPI, layout="constrained")
    axes = [figure.add_subplot(2, 3, i + 1) for i in range(6)]
    axes[5].axis("off")
    return figure, axes[:5], axes[5]


def _handles(models: Sequence[str]) -> list[Line2D]:
    return [Line2D([], [], color=_colour(m), lw=4, label=_called(m)) for m in models]


def _legend(axes: Axes, models: Sequence[str], note: str) -> None:
    axes.legend(handles=_handles(models), loc="upper left", fontsize=10, labelspacing=0.7)
    axes.text(
        0.04, 0.04, note, transform=axes.transAxes, fontsize=8.5, color="#5a5a5a", va="bottom"
    )


def _heat(
    axes: Axes,
    values: Sequence[Sequence[float | None]],
    rows: Sequence[str],
    columns: Sequence[str],
    turn: bool = True,
) -> None:
    """A heat map of shares with the numbers in it; nothing where there is none."""
    shares = np.array([[np.nan if v is None else v for v in row] for row in values], dtype=float)
    axes.imshow(shares, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    for i, j in np.ndindex(*shares.shape):
        if np.isnan(shares[i, j]):
            continue
        shade = "white" if shares[i, j] > 0.55 else INK
        text = f"{shares[i, j]:.2f}" if shares[i, j] >= 0.005 else "0"
        axes.text(j, i, text, ha="center", va="center", fontsize=8.5, color=shade)
    axes.set_xticks(range(len(columns)), list(columns), rotation=20 if turn else 0)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def _series(
    rows: Sequence[Row], kind: str, model: str, x: str, y: str
) -> tuple[np.ndarray, np.ndarray]:
    chosen = [row for row in rows if row["type"] == kind and row["model"] == model]
    return (
        np.array([float(row[x]) for row in chosen]),
        np.array([float(row[y]) for row in chosen]),
    )


def _colour(model: str) -> str:
    return COLOURS.get(model, OTHER)


def _called(model: str) -> str:
    return NAMES.get(model, model)


def _png(figure: Figure) -> bytes:
    """PNG without the library's version in it, so that the bytes only change with the figure."""
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer, metadata={"Software": None})
    return buffer.getvalue()
