"""A decision as a picture: paired differences as a forest plot, other gates to their bounds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipelines.measures.figures import DPI, INK, STYLE
from trail.scan import ANOMALIES

# Okabe & Ito's palette, which colour-blind people can tell apart; the shape says it again.
_LOOK: Final = {
    "passed": ("#0072b2", "o"),
    "failed": ("#d55e00", "X"),
    "not judged": ("#9a9a9a", "o"),
}
_MEASURES: Final = (("ap", "map", "AP", "mAP"), ("f_beta", "f_beta", "F-beta", "F-beta, by cost"))


def forest(decision: Mapping[str, Any]) -> bytes:
    """The plot of a decision, a mapping as promotion.json holds it, as PNG bytes."""
    gates = {gate["name"]: gate for gate in decision["gates"]}
    others = [g for g in decision["gates"] if g["name"] not in ("loads", *_of_gains(gates))]
    rows = _rows(decision)
    with mpl.rc_context(STYLE):
        height = 1.3 + 0.24 * max(len(rows), len(others))
        figure = Figure(figsize=(11.0, height), dpi=DPI, layout="constrained")
        left, right = figure.subplots(1, 2, width_ratios=(1, 1))
        figure.suptitle(_title(decision), x=0.01, ha="left", fontsize=10.5, fontweight="bold")
        _differences(left, rows, gates)
        _bounds(right, others)
        return _png(figure)


def _of_gains(gates: Mapping[str, Any]) -> list[str]:
    return [name for name in gates if name in ("map", "f_beta") and gates[name]["interval"]]


def _title(decision: Mapping[str, Any]) -> str:
    champion = decision["champion"]
    against = f" against {champion['version']}" if champion else ""
    by = f" by {', '.join(decision['refused_by'])}" if decision["refused_by"] else ""
    version = decision["challenger"]["version"]
    return f"{decision['model']} version {version}{against}: {decision['outcome']}{by}"


def _rows(decision: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, float]]]:
    """Label, gate ("" for a type's own difference) and interval of each row, top first."""
    gains, rows = decision.get("gains") or {}, []
    for measure, gate, short, whole in _MEASURES:
        by_type = gains.get(measure, {})
        for kind in ("all", *ANOMALIES):
            one = by_type.get(kind)
            if one and one["mid"] is not None and one["low"] is not None:
                label = whole if kind == "all" else f"{short} {kind}"
                rows.append((label, gate if kind == "all" else "", one))
    return rows


def _differences(
    axes: Axes, rows: Sequence[tuple[str, str, Mapping[str, float]]], gates: Mapping[str, Any]
) -> None:
    axes.set_title("Challenger − champion, 95 % by lot", loc="left")
    if not rows:
        axes.text(0.5, 0.5, "there was no champion to compare with", ha="center", va="center")
        axes.set_axis_off()
        return
    axes.axvline(0, color=INK, lw=0.9)
    for i, (_, gate, one) in enumerate(rows):
        colour, shape = _LOOK[gates[gate]["verdict"]] if gate else ("#7f7f7f", "o")
        axes.plot([one["low"], one["high"]], [i, i], color=colour, lw=2.2 if gate else 1.2)
        axes.plot(one["mid"], i, shape, ms=6.5 if gate else 4, color=colour)
        if gate:
            bound = gates[gate]["bound"]
            axes.plot([bound, bound], [i - 0.4, i + 0.4], color=INK, lw=1.4, ls=(0, (2, 1)))
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("gain; the dashed mark is what the lower end may lose")


def _bounds(axes: Axes, gates: Sequence[Mapping[str, Any]]) -> None:
    """How much of its bound each gate uses: left of 1 is passed."""
    axes.set_title("Other gates: how much of its bound each uses", loc="left")
    axes.axvline(1, color=INK, lw=0.9)
    labels = []
    for i, gate in enumerate(gates):
        colour, shape = _LOOK[gate["verdict"]]
        used = _used(gate)
        if used is None:
            axes.text(0.02, i, gate["verdict"], va="center", color=colour, fontsize=8)
            labels.append(str(gate["name"]))
            continue
        axes.plot([0, min(used, 2)], [i, i], color=colour, lw=1.2)
        axes.plot(min(used, 2), i, shape, ms=5.5, color=colour, clip_on=False)
        labels.append(f"{gate['name']}   {gate['figure']:.3g} / {gate['bound']:.3g}")
    axes.set_yticks(range(len(gates)), labels)
    axes.set(xlim=(0, 2), ylim=(len(gates) - 0.4, -0.6))
    axes.set_xlabel("figure / bound, of floors bound / figure; 2 is 2 or more")


def _used(gate: Mapping[str, Any]) -> float | None:
    figure, bound = gate["figure"], gate["bound"]
    if figure is None or bound is None or gate["verdict"] == "not judged":
        return None
    part, whole = (bound, figure) if gate["at_least"] else (figure, bound)
    if bound <= 0:  # of a difference: what is lost of what may be lost
        part, whole = -min(figure, 0.0), -bound
    if part <= 0:
        return 0.0
    return float(part / whole) if whole > 0 else 2.0


def _png(figure: Figure) -> bytes:
    canvas, out = FigureCanvasAgg(figure), io.BytesIO()
    canvas.print_png(out, metadata={"Software": ""})
    return out.getvalue()
