"""
### Retrain

Weekly, on drift, or by hand: a model of all that is known by now.

| task | does |
|---|---|
| `prepare` | a workspace of the run's own: a git clone at the home's commit, with the shared DVC cache. Skips the run when the champion is no longer the one that was to be replaced |
| `snapshot` | scans of the prediction log, sites and verdicts become a new version of `data/`. Skips the run when there is nothing new |
| `validate` ... `register` | the stages of `dvc.yaml`, each `dvc repro -s STAGE` in a fresh process |
| `promote` | the gates compare challenger and champion on this run's test lots |
| `approval` | asks a person, where `promotion` is `approval` and the gates were passed |
| `publish` | `dvc push`, and `dvc.lock` and `data.dvc` on the branch `runs/retrain/<run>` |
| `clean` | removes the workspace; that of a failed run stays for another try |

Every task may be killed and cleared at any time: it goes on where it was. One task by hand:
`python -m pipelines.runs stage train --run <run id>`.
"""  # noqa: E501

from __future__ import annotations

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, Param, TriggerRule
from trailwatch.approval import APPROVAL, BODY, PATIENCE, PROMOTE, Approval, Settle
from trailwatch.command import Command
from trailwatch.rendered import EPOCHS, PACE, WINDOW, close, every, publish, render

with DAG(
    dag_id="retrain",
    description="A model of all that is known by now, judged by the gates",
    schedule=every("0 0 * * 0"),
    catchup=False,
    max_active_runs=1,
    default_args=PACE,
    doc_md=__doc__,
    tags=["trailwatch"],
    params={
        "window_days": WINDOW,
        "epochs": EPOCHS,
        "promotion": Param(
            "auto",
            type="string",
            enum=["auto", "approval", "never"],
            title="Promotion",
            description="What to do when the gates are passed.",
        ),
        "champion": Param(
            None,
            type=["null", "string"],
            pattern="^[0-9]{1,9}$",
            title="Champion to replace",
            description="Its version; the run is skipped when it is no longer the champion.",
        ),
        "force": Param(
            False,
            type="boolean",
            title="Force",
            description="Train although nothing is new.",
        ),
    },
) as dag:
    rendered = render()
    promote = Command(
        task_id=PROMOTE,
        words=["promote"],
        doc_md="The gates compare challenger and champion on this run's test lots",
    )
    approval = Approval(
        task_id=APPROVAL,
        subject="Promote the challenger of run {{ run_id }}?",
        body=BODY,
        doc_md="Asks a person where `promotion` is `approval` and every gate was passed",
        defaults=Approval.REJECT,
        response_timeout=PATIENCE,
        execution_timeout=None,
    )
    # A rejection skips what follows at once; what it skips here is this, and never `settle`.
    approved = EmptyOperator(task_id="approved", doc_md="Skipped where the answer was no")
    settle = Settle(
        task_id="settle",
        words=["promote"],
        trigger_rule=TriggerRule.NONE_FAILED,
        doc_md="Carries out what the person said, and writes it into the ledger",
    )
    published = publish(trigger_rule=TriggerRule.NONE_FAILED_MIN_ONE_SUCCESS)
    rendered.last >> promote >> approval >> approved >> settle >> published
    promote >> published
    close(rendered, published)
