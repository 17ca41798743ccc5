"""A page for people on what came in lately: Evidently's report, and Data Docs of the same scans.

Both become artifacts of a run in the MLflow experiment `<model>-reports`. Whether the world has
drifted is the monitor's to say; this page decides nothing. `python -m pipelines.report --days 7`
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from intake.columns import to_scans
from intake.master import read_sites
from logbook import LogError, PredictionLog, Watched, export
from logbook.opened import open_log
from models.registry import CHAMPION, fetch
from monitoring.reference import Reference, ReferenceError
from monitoring.report import Recent, evidently_page
from pipelines import params, tracking
from pipelines.expectations import Limits, Outcome
from pipelines.progress import say
from pipelines.runs import SKIPPED
from pipelines.runspace import Places, Skip
from pipelines.validate import check
from trail.scan import DAY_US

MOST_SCANS: Final = 60_000
"""Scans that a report looks back on, at most."""
LEAST_SCANS: Final = 50


@dataclass(frozen=True, slots=True)
class Lately:
    """The newest scans of the log.

    Attributes:
        scans: those with what the champion monitors of them.
        logged: all of them, `logbook.export.SCHEMA`.
    """

    scans: Recent
    logged: pa.Table


def main(argv: list[str] | None = None) -> int:
    """Make the report; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.report", description=__doc__)
    parser.add_argument("--days", type=int, default=1, help="of scans, up to the newest")
    parser.add_argument("--run", default="", help="id of a DAG's run; the same id, the same report")
    parser.add_argument("--dag", default="report", help="its DAG")
    parser.add_argument("--options", default="{}", help='JSON with "days", instead of --days')
    asked = parser.parse_args(argv)
    days = int(json.loads(asked.options).get("days") or asked.days)
    try:
        where = report(Places.read(), days, asked.run)
    except Skip as reason:
        say(f"skipped: {reason}")
        return SKIPPED
    except (LogError, ReferenceError, ValueError, OSError) as error:
        say(f"report: {' '.join(str(error).split())}")
        return 1
    say(f"report: {where}")
    return 0


def report(places: Places, days: int, key: str) -> str:
    """Make and attach the report; returns where it is.

    Args:
        places: where log and registry are.
        days: how far back.
        key: what the MLflow run is found again by, "" for a run of its own.

    Raises:
        Skip: there is no champion, or nothing came in.
        LogError: the log cannot be read.
    """
    store = tracking.client()
    found = fetch(store, places.model, CHAMPION)
    if found is None:
        raise Skip(f"{places.model} has no champion yet")
    bundle, version = found
    reference = Reference.load(bundle)
    log = open_log(places.log)
    try:
        lately = read(log, days, len(reference.names))
    finally:
        log.close()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        outcomes = _docs(lately.logged, bundle, places.home, folder / "data_docs")
        if len(lately.scans.columns) >= LEAST_SCANS:
            (folder / "evidently").mkdir()
            evidently_page(folder / "evidently" / "report.html", reference, lately.scans)
        name = f"{places.model}-reports"
        tags = {"champion": version, "days": str(days)}
        if key:
            run = tracking.run_for(store, name, "dag_run_id", key, tags)
        else:
            experiment = tracking.experiment(name, store)
            run = str(store.create_run(experiment, tags=tags, run_name="by hand").info.run_id)
        store.log_metric(run, "scans", len(lately.logged))
        store.log_metric(run, "expectations_failed", sum(not o.success for o in outcomes))
        store.log_artifacts(run, str(folder))
        store.set_terminated(run)
    return f"run {run} of experiment {name}: {len(lately.logged):,} scans of {days} days"


def read(log: PredictionLog, days: int, columns: int) -> Lately:
    """The scans of the last days up to the newest one received, at most `MOST_SCANS`.

    Args:
        log: the log.
        days: how far back.
        columns: how many columns the champion monitors.

    Raises:
        Skip: the log is empty.
    """
    last = int(log.figures()["last_id"])
    rows = log.watched(max(last - MOST_SCANS, 0), MOST_SCANS)
    if not rows:
        raise Skip("the log holds no scans yet")
    since_us = max(row.received_us for row in rows) - days * DAY_US
    rows = [row for row in rows if row.received_us >= since_us]
    return Lately(_monitored(rows, columns), export.scans(log, rows[-1].id, rows[0].id - 1))


def _monitored(rows: list[Watched], columns: int) -> Recent:
    kept = [row for row in rows if row.monitored and len(row.monitored) == 4 * columns]
    values = np.frombuffer(b"".join(row.monitored or b"" for row in kept), dtype="<f4")
    return Recent(
        values.reshape(len(kept), columns).astype(np.float32),
        np.array([row.time_us for row in kept], dtype=np.int64),
        [row.location_id for row in kept],
    )


def _docs(logged: pa.Table, bundle: Path, home: Path, docs: Path) -> list[Outcome]:
    """Hold logged scans against the expectations, and write Data Docs."""
    master = bundle / "sites.csv"
    intake = to_scans(logged, read_sites(master) if master.exists() else None, "UTC")
    settings: dict[str, Any] = params.load(home / "params.yaml")["validate"]
    limits = Limits(**{name: settings[name] for name in Limits.__slots__ if name in settings})
    docs.mkdir(parents=True)
    return check(intake, limits, master.exists(), docs)


if __name__ == "__main__":
    sys.exit(main())
