"""
### Sweep

Searches sequence length, hidden size, dropout, loss and learning rate with Optuna. `trials` trains
one network a trial on this run's training part and measures it on the validation part; trials that
fall behind are pruned. They are kept in a database (`TRAILWATCH_SWEEPS`), so that a killed task goes
on: a trial that was running is marked as failed and tried again. The best trial's parameters then go
into `params.yaml` on the run's branch, and the stages make a challenger of them.
"""  # noqa: E501

from __future__ import annotations

from airflow.sdk import DAG, Param
from trailwatch.command import Command
from trailwatch.rendered import EPOCHS, PACE, WINDOW, close, publish, render, training

with DAG(
    dag_id="sweep",
    description="Optuna over the network's settings, and a challenger of the best trial",
    schedule=None,
    catchup=False,
    max_active_runs=1,
    default_args=PACE,
    doc_md=__doc__,
    tags=["trailwatch"],
    params={
        "trials": Param(
            20,
            type="integer",
            minimum=1,
            maximum=1000,
            title="Trials",
            description="How many networks are tried.",
        ),
        "window_days": WINDOW,
        "epochs": EPOCHS,
    },
) as dag:
    rendered = render({"promotion": "never"})
    trials = Command(
        task_id="trials",
        words=["trials"],
        doc_md="One network a trial, measured on the validation part; the best one's settings stay",
        **training(),
    )
    published = publish()
    rendered.stages["sequence"] >> trials >> rendered.stages["train"]
    rendered.last >> published
    close(rendered, published)
