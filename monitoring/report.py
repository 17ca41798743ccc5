"""The report on an episode: Evidently's page and a plot of each column in alarm, for people.

It decides nothing. `python -m monitoring.report` makes one in a process of its own, because its
libraries take seconds and hundreds of MiB to import, and attaches it to the MLflow run of the
champion; `Reporter` starts that process when an episode has opened, and tries again if it fails.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt

from logbook import PredictionLog
from logbook.opened import open_log
from monitoring.drift import Comparison
from monitoring.reference import LOCATION, MONITORED, RECENT, WINDOWS, Reference
from monitoring.settings import Settings
from monitoring.store import Lease, Monitor, Store, open_store

Values = npt.NDArray[Any]

SECOND: Final = 1_000_000
DAY_US: Final = 86_400 * SECOND
MOST_SCANS: Final = 60_000
"""Scans that are looked back on, at most."""
MOST_PLOTS: Final = 12
PAGE: Final = "report.html"
_LONGEST_S: Final = 600.0
_TRIES: Final = 5
_PAUSE_S: Final = 60.0
ROOT: Final = Path(__file__).parent.parent


class Reporter:
    """Makes the reports that wait in the store, one child process at a time."""

    def __init__(
        self,
        store: Store,
        command: Callable[[int], Sequence[str]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare.

        Args:
            store: where reports wait.
            command: the command line that makes the report on an episode, and prints its link.
            clock: seconds since 1970.
        """
        self._store = store
        self._command = command
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._out: IO[bytes] | None = None
        self._err: IO[bytes] | None = None
        self._episode = 0
        self._until = 0.0

    def work(self, lease: Lease) -> None:
        """See whether the child is done, and start the next one. Never waits.

        Raises:
            StoreError, LeaseLostError: see `monitoring.store`.
        """
        if self._child is not None:
            self._look(lease, self._child)
            return
        now_us = int(self._clock() * SECOND)
        waiting = [
            report
            for report in self._store.reports()
            if not report.link and report.tries < _TRIES and report.due_us <= now_us
        ]
        if waiting:
            self._start(waiting[-1].episode)

    def close(self) -> None:
        """End the child."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None

    def _start(self, episode: int) -> None:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._out = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the child
        self._err = tempfile.TemporaryFile()  # noqa: SIM115
        self._child = subprocess.Popen(
            self._command(episode),
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "Agg"},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
        )
        self._episode, self._until = episode, self._clock() + _LONGEST_S

    def _look(self, lease: Lease, child: subprocess.Popen[bytes]) -> None:
        if child.poll() is None:
            if self._clock() < self._until:
                return
            child.kill()
            child.wait()
        self._child = None
        link = _last_line(self._out)
        episode = self._episode
        if child.returncode == 0 and link:
            with self._store.change(lease) as step:
                step.report(episode, link=link, error="")
                step.note("report", {"episode": episode, "link": link})
            return
        said = _last_line(self._err) or f"it ended with status {child.returncode}"
        known = next((r for r in self._store.reports() if r.episode == episode), None)
        tries = 0 if known is None else known.tries
        due_us = int((self._clock() + _PAUSE_S * 2**tries) * SECOND)
        with self._store.change(lease) as step:
            step.report(episode, tries=tries + 1, due_us=due_us, error=said[:500])
            step.note("report", {"episode": episode, "error": said[:500]})


def _last_line(file: IO[bytes] | None) -> str:
    if file is None:
        return ""
    with file:
        file.seek(0)
        lines = file.read().decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""


@dataclass(frozen=True, slots=True)
class Recent:
    """The scans of the longest window.

    Attributes:
        columns: float32 (n, c), as in the reference.
        time_us: int64 (n,), the time that moves the windows.
        location: their sites.
    """

    columns: npt.NDArray[np.float32]
    time_us: npt.NDArray[np.int64]
    location: list[str]


def recent(log: PredictionLog, monitor: Monitor, columns: int) -> Recent:
    """The champion's scans of the last days that the monitor has read, `MOST_SCANS` at most."""
    rows = [
        row
        for row in log.watched(max(monitor.offset - MOST_SCANS, 0), MOST_SCANS)
        if row.id <= monitor.offset
        and row.digest == monitor.digest
        and row.monitored is not None
        and len(row.monitored) == 4 * columns
    ]
    values = np.frombuffer(b"".join(row.monitored or b"" for row in rows), dtype="<f4")
    event = monitor.clock == "event"
    time_us = np.array([r.time_us if event else r.received_us for r in rows], dtype=np.int64)
    longest = max(window.days for window in WINDOWS) * DAY_US
    end = int((monitor.evaluation or {}).get("clock_us", 0)) if event else monitor.evaluated_us
    kept = np.flatnonzero(time_us > end - longest)
    return Recent(
        values.reshape(len(rows), columns).astype(np.float32)[kept],
        time_us[kept],
        [rows[i].location_id for i in kept.tolist()],
    )


def make(
    folder: Path, reference: Reference, scans: Recent, evaluation: dict[str, Any], title: str
) -> list[Path]:
    """Write Evidently's page and the plots into a folder.

    Args:
        folder: where to.
        reference: what the scans are compared with.
        scans: those of the longest window.
        evaluation: as in `monitoring.store.Monitor.evaluation`.
        title: of what.

    Returns:
        The files, the page first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = [evidently_page(folder / PAGE, reference, scans, title)]
    features = evaluation["features"]
    worst = sorted(features, key=lambda name: -features[name]["score"])
    alarming = [name for name in worst if features[name]["score"] >= 1] or worst[:3]
    for name in alarming[:MOST_PLOTS]:
        if name != LOCATION:
            files.append(_plot(folder / f"{name}.png", reference, scans, name, features, title))
    return files


def evidently_page(
    file: Path, reference: Reference, scans: Recent, title: str = "The newest scans"
) -> Path:
    """Write Evidently's comparison of scans with the reference; returns the file."""
    import pandas as pd
    from evidently import DataDefinition, Dataset, Report
    from evidently.presets import DataDriftPreset

    names = list(reference.names)
    current = scans.columns
    if len(current) > len(reference.sample):
        every = np.linspace(0, len(current) - 1, len(reference.sample)).astype(np.intp)
        current = current[every]
    numeric = [n for n, kind in zip(names, reference.kinds, strict=True) if kind == "numeric"]
    categorical = [name for name in names if name not in numeric]
    tables = []
    for values in (reference.sample, current):
        table = pd.DataFrame(values, columns=names)
        table[categorical] = table[categorical].astype(str)
        tables.append(table)
    # A column that is missing throughout on either side has no distribution to draw.
    shown = [name for name in names if all(table[name].notna().any() for table in tables)]
    definition = DataDefinition(
        numerical_columns=[name for name in numeric if name in shown],
        categorical_columns=[name for name in categorical if name in shown],
    )
    before, now = (
        Dataset.from_pandas(table[shown], data_definition=definition) for table in tables
    )
    # A distance, not a p-value: scans move in boxes, and every p-value would be small.
    preset = DataDriftPreset(
        num_method="jensenshannon",
        cat_method="jensenshannon",
        num_threshold=0.1,
        cat_threshold=0.1,
    )
    Report([preset]).run(now, before).save_html(str(file))
    _headed(file, title)
    return file


def _headed(file: Path, title: str) -> None:
    """Say on Evidently's page what it is, and that its own verdict decides nothing."""
    text = file.read_text(encoding="utf-8")
    said = (
        '<div style="font: 15px sans-serif; margin: 1.5em; max-width: 60em">'
        f"<b>{escape(title)}</b>: the scans of the last days (current) against the reference, "
        "drawn by Evidently. What is said below of drift compares all sites with a threshold of "
        "0.1, and decides nothing: /health/drift tells what alarms, and why.</div>"
    )
    file.write_text(re.sub(r"(<body[^>]*>)", lambda at: at[1] + said, text, count=1), "utf-8")


def _plot(
    file: Path,
    reference: Reference,
    scans: Recent,
    name: str,
    features: dict[str, dict[str, Any]],
    title: str,
) -> Path:
    """Distribution of a column in its worst window, and in the reference at the window's sites,
    with the threshold.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    told = features[name]
    rows = _in_window(scans, str(told["window"]))
    values = scans.columns[rows, reference.names.index(name)]
    finite = np.sort(values[np.isfinite(values)])
    missing = 1 - len(finite) / max(len(values), 1)
    ends, shares = _expected(reference, name, [scans.location[i] for i in rows.tolist()])
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    if told["type"] == "categorical":
        _bars(axes, ends, shares, finite, len(values))
        axes.set_ylabel("share of the scans")
    else:
        _steps(axes, ends, shares, finite, len(values), told)
        axes.set_ylabel("cumulated share of the scans")
    means = {column.name: column.means for column in MONITORED}.get(name, name)
    axes.set_xlabel(f"{means}\nmissing values: reference {shares[-1]:.1%}, window {missing:.1%}")
    axes.set_title(f"{title}: {name}, D = {told['d']:.3f}, score {told['score']:.2f}")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    return file


def _expected(reference: Reference, name: str, location: Sequence[str]) -> tuple[Values, Values]:
    """What the reference saw of a column at some scans' sites, as `Reference.cell_shares` tells
    it: that is what the scans are compared with.
    """
    ends, everywhere = reference.cell_shares(name)
    level_of = dict(zip(reference.sites, reference.level.tolist(), strict=True))
    level = [level_of[site] for site in location if site in level_of]
    if not level:
        return ends, everywhere
    levels = np.bincount(level, minlength=len(reference.level_n))[None]
    cells = Comparison(reference).expected(levels)[0, reference.names.index(name)]
    return ends, np.append(cells[: len(ends) + 1], cells[-1]).astype(np.float64)


def _steps(
    axes: Any, ends: Values, shares: Values, finite: Values, n: int, told: dict[str, Any]
) -> None:
    """Cumulated shares of the reference, with the threshold around them, and of n scans."""
    heights = np.cumsum(shares[: len(ends)])
    axes.step(ends, heights, where="post", label="reference, at the window's sites")
    axes.fill_between(
        ends,
        np.clip(heights - told["threshold"], 0, 1),
        np.clip(heights + told["threshold"], 0, 1),
        step="post",
        alpha=0.15,
        label=f"threshold {told['threshold']:.3f}",
    )
    if len(finite):
        share = np.arange(1, len(finite) + 1) / n
        axes.step(finite, share, where="post", label=f"window {told['window']}, n = {n}")
    # The last fiftieth of a long tail would press everything else into a corner.
    inside = [ends[np.searchsorted(heights, 0.98 * heights[-1])]] if len(ends) else []
    inside += [finite[int(0.98 * (len(finite) - 1))]] if len(finite) else []
    last = max([*ends[-1:], *finite[-1:]], default=0.0)
    if inside and last > 1.5 * max(inside) > 0:
        axes.set_xlim(right=1.05 * max(inside))
    axes.locator_params(axis="x", nbins=6)


def _bars(axes: Any, ends: Values, shares: Values, finite: Values, n: int) -> None:
    """Shares of the levels; the odd cells of a categorical column are its levels."""
    levels = ends[1::2]
    now = [float((finite == np.float32(level)).sum()) / max(n, 1) for level in levels]
    new = len(finite) / max(n, 1) - sum(now)
    names = [f"{level:g}" for level in levels] + ["(new)"]
    place = np.arange(len(names))
    axes.bar(place - 0.2, [*shares[1 : 2 * len(levels) : 2], 0.0], 0.4, label="reference")
    axes.bar(place + 0.2, [*now, max(new, 0.0)], 0.4, label="window")
    axes.set_xticks(place, names, rotation=45, ha="right")


def _in_window(scans: Recent, name: str) -> npt.NDArray[np.intp]:
    """Positions of the scans of a window."""
    window = next((one for one in WINDOWS if one.name == name), WINDOWS[-1])
    if not window.days or not len(scans.time_us):
        return np.arange(len(scans.columns))[-RECENT:]
    return np.flatnonzero(scans.time_us > scans.time_us.max() - window.days * DAY_US)


def attached(model: str, version: str, folder: Path, episode: int) -> str:
    """Log a folder to the MLflow run of a model's version; returns the page's address."""
    from models.registry import client, tracking_uri

    store = client()
    run_id = str(store.get_model_version(model, version).run_id)
    path = f"drift/e{episode}"
    store.log_artifacts(run_id, str(folder), path)
    uri = tracking_uri()
    if not uri.startswith("http"):
        return f"runs:/{run_id}/{path}/{PAGE}"
    experiment = store.get_run(run_id).info.experiment_id
    return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run_id}/artifacts/{path}/{PAGE}"


def main(words: list[str]) -> int:
    """Make the report on an episode and print its address."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.report", description=__doc__)
    parser.add_argument("--episode", type=int, required=True)
    parser.add_argument("--version", required=True, help="the champion that it is about")
    parser.add_argument("--folder", type=Path, required=True, help="its bundle")
    parser.add_argument("--keep", type=Path, help="write it here, instead of to its MLflow run")
    asked = parser.parse_args(words)
    settings = Settings.read()
    reference = Reference.load(asked.folder)
    store = open_store(settings.drift_url, settings.model)
    try:
        monitor = store.monitor()
    finally:
        store.close()
    if monitor is None or monitor.evaluation is None or monitor.policy.version != asked.version:
        print("there is no evaluation of this champion any more", file=sys.stderr)
        return 1
    log = open_log(settings.log_url)
    try:
        scans = recent(log, monitor, len(reference.names))
    finally:
        log.close()
    title = f"{settings.model} {asked.version}, episode {asked.episode}"
    if asked.keep is not None:
        print(make(asked.keep, reference, scans, monitor.evaluation, title)[0])
        return 0
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), reference, scans, monitor.evaluation, title)
        print(attached(settings.model, asked.version, Path(folder), asked.episode))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
