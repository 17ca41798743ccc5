"""The demo's timeline as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from bench.demo import Story

COLOURS: Final = {
    "ok": "#4c9f70",
    "warming_up": "#9fb8ad",
    "warn": "#e0a030",
    "drift": "#c8453b",
    "blind": "#777777",
}
"""Of the states of `/health/drift`."""


def drawn(story: Story, file: Path) -> Path:
    """Score and state by day of the world, and what happened when."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.patches import Patch

    figure, (axes, table) = plt.subplots(
        2, 1, figsize=(11, 8.5), gridspec_kw={"height_ratios": [3, 4]}
    )
    days = [moment.day + 1 for moment in story.moments]
    for moment in story.moments:
        colour = COLOURS.get(moment.state, "white")
        axes.axvspan(moment.day, moment.day + 1, color=colour, alpha=0.35, lw=0)
    for version in dict.fromkeys(moment.version for moment in story.moments):
        mine = [i for i, moment in enumerate(story.moments) if moment.version == version]
        score = [story.moments[i].score for i in mine]
        axes.plot(
            [days[i] for i in mine], score, marker="o", ms=4, label=f"largest score, v{version}"
        )
    axes.axhline(1.0, color="black", lw=0.8, ls="--")
    axes.text(max(days, default=1) - 0.1, 1.01, "alarm", fontsize=8, va="bottom", ha="right")
    axes.axvline(story.change, color="black", lw=1.2)
    top = max([1.2, *(1.15 * moment.score for moment in story.moments)])
    axes.text(story.change + 0.1, top * 0.97, "new factory,\ndwells double", fontsize=9, va="top")
    swap = next((m.day for m in story.moments if m.version != story.moments[0].version), None)
    if swap is not None:
        axes.axvline(swap, color="black", lw=1.2, ls=":")
        axes.text(swap + 0.1, top * 0.97, "new champion", fontsize=9, va="top")
    axes.set_ylim(0, top)
    axes.set_xlim(0, max(days, default=1))
    axes.set_xlabel("day of the world, through the service")
    axes.set_ylabel("distance / threshold")
    seen = dict.fromkeys(moment.state for moment in story.moments)
    patches = [Patch(color=COLOURS.get(s, "white"), alpha=0.35, label=s) for s in seen]
    handles, _ = axes.get_legend_handles_labels()
    legend = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "frameon": False}
    axes.legend(handles=[*handles, *patches], fontsize=8, ncols=8, **legend)
    axes.set_title("Drift, retraining, and a new champion")
    _listed(table, story)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


def _listed(axes: object, story: Story) -> None:
    """The lines of the timeline under the curve, by the minutes that they took."""
    axes.axis("off")  # type: ignore[attr-defined]
    lines = [
        f"{int(took) // 60:2d}:{int(took) % 60:02d}  day {day:3d}  {what}"
        for took, day, what in story.lines
        if not what.startswith("  see")
    ]
    text = "\n".join(line if len(line) <= 118 else f"{line[:115]}..." for line in lines)
    axes.text(0, 1, text, family="monospace", fontsize=7.5, va="top")  # type: ignore[attr-defined]
