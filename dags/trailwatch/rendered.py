"""dvc.yaml as tasks: what every DAG of the pipeline has in common."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from airflow.sdk import CronTriggerTimetable, Param
from trailwatch.alert import alert
from trailwatch.command import Command
from trailwatch.graph import descriptions, stages

PACE: dict[str, Any] = {
    "owner": "trailwatch",
    "retries": 3,
    "retry_delay": timedelta(seconds=30),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=10),
    "execution_timeout": timedelta(hours=2),
    "on_failure_callback": alert,
}
"""How often a task is tried, how long it may take, and who is told."""

WINDOW = Param(
    None,
    type=["null", "integer"],
    minimum=7,
    maximum=3650,
    title="Window (days)",
    description="Only lots that began so long before the newest one; empty for all data.",
)
EPOCHS = Param(
    None,
    type=["null", "integer"],
    minimum=1,
    maximum=1000,
    title="Epochs",
    description="At most so many; empty for what params.yaml says.",
)


def every(cron: str) -> CronTriggerTimetable:
    """A schedule in UTC whose first run is the next one: a platform that has just come up is left
    in peace. It takes a DAG without a start date for that.
    """
    return CronTriggerTimetable(cron, timezone="UTC", run_immediately=timedelta(0))


def training() -> dict[str, Any]:
    """Settings of a task that trains: where it waits for its turn, and how long it may take."""
    return {
        "pool": os.environ.get("TRAILWATCH_TRAIN_POOL") or "default_pool",
        "queue": os.environ.get("TRAILWATCH_TRAIN_QUEUE") or "default",
        "execution_timeout": timedelta(hours=12),
    }


@dataclass(frozen=True)
class Rendered:
    """The tasks that every run begins with, and one for each stage.

    Attributes:
        prepare: makes the workspace.
        snapshot: makes the run's version of the data.
        stages: by name.
        last: the stages that no other one waits for.
    """

    prepare: Command
    snapshot: Command
    stages: dict[str, Command]
    last: list[Command]


def render(options: Mapping[str, Any] | None = None) -> Rendered:
    """Tasks of dvc.yaml in the DAG at hand: one a stage, with its name and its edges.

    Args:
        options: constants beside the run's params.
    """
    prepare = Command(
        task_id="prepare",
        words=["prepare"],
        options=options or {},
        doc_md="A workspace of the run's own: a git clone at the home's commit, DVC's cache shared",
    )
    snapshot = Command(
        task_id="snapshot",
        words=["snapshot"],
        doc_md="Logged scans, sites and verdicts become a version of `data/`; skips without news",
    )
    prepare >> snapshot
    graph, told = stages(), descriptions()
    made = {
        name: Command(
            task_id=name,
            words=["stage", name],
            doc_md=told[name],
            **(training() if name == "train" else {}),
        )
        for name in graph
    }
    for name, needs in graph.items():
        (([made[other] for other in needs]) or [snapshot]) >> made[name]
    waited_for = {other for needs in graph.values() for other in needs}
    return Rendered(
        prepare, snapshot, made, [task for name, task in made.items() if name not in waited_for]
    )


def publish(**settings: Any) -> Command:
    """The task that pushes what a run made; `settings` are those of any operator."""
    return Command(
        task_id="publish",
        words=["publish"],
        doc_md="`dvc push`, and `dvc.lock` and `data.dvc` on the branch `runs/<dag>/<run>`",
        **settings,
    )


def close(rendered: Rendered, last: Command) -> Command:
    """The task that cleans up: it runs whatever happened, and a failure stays a failure."""
    clean = Command(
        task_id="clean",
        words=["clean"],
        retries=1,
        doc_md="Removes the workspace; that of a failed run stays for another try",
    )
    last >> clean.as_teardown(setups=rendered.prepare)
    return clean
