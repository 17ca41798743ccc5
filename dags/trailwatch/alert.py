"""What happens when a task has failed for good: a line in the log, and a webhook where one is set.

`TRAILWATCH_ALERT_WEBHOOK` gets a POST of `{"text", "dag", "run", "task", "cause", "log"}`; `text`
is what chat services show.
"""

from __future__ import annotations

import json
import logging
import os
import urllib.request
from typing import Any

LOG = logging.getLogger("trailwatch.alert")
TIMEOUT_S = 10


def alert(context: Any) -> None:
    """Tell of a failed task; a webhook that does not answer is no further failure."""
    ti = context["ti"]
    cause = str(context.get("exception") or "no cause was given")
    message = {
        "text": f"Trailwatch: {ti.dag_id}.{ti.task_id} failed in run {ti.run_id}: {cause}",
        "dag": ti.dag_id,
        "run": ti.run_id,
        "task": ti.task_id,
        "cause": cause,
        "log": str(getattr(ti, "log_url", "") or ""),
    }
    LOG.error("%s", message["text"])
    url = os.environ.get("TRAILWATCH_ALERT_WEBHOOK", "").strip()
    if not url:
        return
    try:
        request = urllib.request.Request(
            url, json.dumps(message).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            pass
    except (OSError, ValueError) as error:
        LOG.error("the alert's webhook did not take it: %s", error)
