"""
### Backfill

What would have been trained at a past date? The data is cut there (scans of that date and later, and
what analysts said since, are left out), and the stages run as in `retrain`. The version is registered
under `<model>-backfill`, so that it is never a candidate for promotion. `compare` prints all such
versions side by side, by date, each on its own newest lots and against the rules on the same lots;
the table is attached to MLflow.

One run is one date: trigger it once for each.
"""  # noqa: E501

from __future__ import annotations

import os

from airflow.sdk import DAG, Param
from trailwatch.command import Command
from trailwatch.rendered import EPOCHS, PACE, WINDOW, close, publish, render

MODEL = f"{os.environ.get('TRAILWATCH_MODEL') or 'trailwatch'}-backfill"

with DAG(
    dag_id="backfill",
    description="What would have been trained at a past date, to compare",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=PACE,
    doc_md=__doc__,
    tags=["trailwatch"],
    params={
        "as_of": Param(
            type="string",
            format="date",
            title="As of",
            description="Only what happened before this day (UTC), such as 2026-03-01.",
        ),
        "window_days": WINDOW,
        "epochs": EPOCHS,
    },
) as dag:
    rendered = render({"model": MODEL, "promotion": "never"})
    compare = Command(
        task_id="compare",
        module="pipelines.backfill",
        words=["--model", MODEL],
        doc_md="All versions of past dates side by side, attached to MLflow",
    )
    rendered.last >> publish() >> compare
    close(rendered, compare)
