"""A person's word on a promotion, asked for with Airflow's own operator."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.sdk.exceptions import AirflowSkipException
from trailwatch.command import Command

PROMOTE, APPROVAL, ANSWER = "promote", "approval", "answer"
PATIENCE = timedelta(days=7)
BODY = """
{% set decided = macros.json.loads(ti.xcom_pull(task_ids='promote')) %}
Version {{ decided.version }} passed every gate.

{% for name, said in decided.gains.items() -%}
- {{ name }}: {{ said }}
{% endfor %}

All figures stand in the log of the task `promote`, and in `promotion/` of the version's run in
MLflow. **Approve** makes it champion; services follow within seconds. Without an answer within a
week it is rejected.
"""


class Approval(ApprovalOperator):
    """Ask a person, if the gates' decision waits for one; else there is nothing to ask."""

    def execute(self, context: Any) -> Any:
        """Ask."""
        decided = json.loads(context["ti"].xcom_pull(task_ids=PROMOTE))
        if decided["outcome"] != "waiting":
            raise AirflowSkipException(f"nobody is asked: the outcome is {decided['outcome']!r}")
        return super().execute(context)

    def execute_complete(self, context: Any, event: dict[str, Any]) -> Any:
        """Hand the answer on; a rejection ends the task by skipping what follows, so first."""
        if "chosen_options" in event:
            said = {name: event.get(name) for name in ("chosen_options", "responded_by_user")}
            context["ti"].xcom_push(key=ANSWER, value=said)
        return super().execute_complete(context, event)


class Settle(Command):
    """Carry out what the person said."""

    def arguments(self, context: Any) -> list[str]:
        """`--answer` and `--by` beside what every command gets."""
        said = context["ti"].xcom_pull(task_ids=APPROVAL, key=ANSWER)
        if not said:
            raise AirflowSkipException("nobody was asked")
        approved = said["chosen_options"] == [ApprovalOperator.APPROVE]
        user = said.get("responded_by_user") or {}
        who = user.get("name") or user.get("id") or "nobody in time"
        return [
            *super().arguments(context),
            *("--answer", "approve" if approved else "reject", "--by", str(who)),
        ]
