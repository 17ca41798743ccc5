"""
### Report

Daily: what came in lately against what came before it, as an Evidently report, and the Data Docs of
the newest scans, both as artifacts of an MLflow run in the experiment `<model>-reports`. A page for
people; whether the world has drifted is the monitor's to say (`/health/drift`).
"""

from __future__ import annotations

from airflow.sdk import DAG, Param
from trailwatch.command import Command
from trailwatch.rendered import PACE, every

with DAG(
    dag_id="report",
    description="Evidently and Data Docs of the newest scans, to MLflow",
    schedule=every("0 4 * * *"),
    catchup=False,
    max_active_runs=1,
    default_args=PACE,
    doc_md=__doc__,
    tags=["trailwatch"],
    params={
        "days": Param(
            1,
            type="integer",
            minimum=1,
            maximum=90,
            title="Days",
            description="The report is on the scans of so many days up to the newest.",
        ),
    },
) as dag:
    Command(
        task_id="report",
        module="pipelines.report",
        options={},
        doc_md="The last days against what came before them; skips where nothing came in",
    )
