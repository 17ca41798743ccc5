"""What is told of drift: the document of `/health/drift`, and the figures behind the metrics.

Both are made of the state database alone, by whoever is asked: API replicas keep no drift state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from monitoring.policy import Level, Policy
from monitoring.store import OPEN, Asked, Monitor, Report, Store

VERSION: Final = 1
"""Of the document; it grows when a field changes its meaning or goes."""
SECOND: Final = 1_000_000
LEAST_STALE_S: Final = 120.0
"""An evaluation is never stale before; beyond it, after three that did not come."""
STATES: Final = ("ok", "warn", "drift", "requested", "training", "cooldown", "warming_up", "blind")


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the state database.

    Attributes:
        model: the registered model.
        monitor: its monitor's state, None where none has run.
        requests: all requests for retraining, oldest first.
        reports: all reports, oldest first.
        now_us: when this was, by the wall clock.
    """

    model: str
    monitor: Monitor | None
    requests: list[Asked]
    reports: list[Report]
    now_us: int


def seen(store: Store, model: str, now_us: int) -> Seen:
    """Look at the state.

    Raises:
        StoreError: it cannot be read.
    """
    return Seen(model, store.monitor(), store.requests(), store.reports(), now_us)


def blind(of: Seen) -> str:
    """Why nothing can be said of drift; "" where something can."""
    monitor = of.monitor
    if monitor is None:
        return "no monitor has run; start `python -m monitoring`, or set TRAILWATCH_MONITOR=inside"
    if not monitor.policy.version:
        return "there is no champion to watch; register a model"
    if not monitor.reference:
        alarm = monitor.alarms.get("no_reference", {})
        return f"the champion has no drift reference; {alarm.get('detail') or 'train again'}"
    if monitor.evaluation is None:
        return "nothing has been evaluated yet; wait for the first evaluation"
    every_s = float(monitor.evaluation["every_s"])
    age_s = (of.now_us - monitor.evaluated_us) / SECOND
    if age_s > max(3 * every_s, LEAST_STALE_S):
        why = monitor.alarms.get("log_down", {}).get("detail", "see whether the monitor runs")
        return f"the last evaluation is {age_s:.0f} s old; {why}"
    return ""


def document(of: Seen) -> dict[str, Any]:
    """The document of `/health/drift`; its `status` is `fail` where the monitor is blind."""
    monitor = of.monitor
    why = blind(of)
    if monitor is None:
        return {"version": VERSION, "status": "fail", "state": "blind", "model": of.model} | {
            "detail": why
        }
    policy, told = monitor.policy, monitor.evaluation or {}
    return {
        "version": VERSION,
        "status": _status(monitor, why),
        "state": "blind" if why else policy.level.value,
        "detail": why,
        "model": of.model,
        "model_version": policy.version or None,
        "reference": monitor.reference or None,
        "evaluated_at": moment(monitor.evaluated_us),
        "clock": monitor.clock,
        "clock_at": moment(told.get("clock_us", 0)),
        "lag_events": monitor.lag,
        "counts": monitor.counts,
        "calibration": told.get("calibration"),
        "max_score": told.get("max_score"),
        "features": told.get("features", {}),
        "windows": told.get("windows", {}),
        "locations": told.get("locations", {}),
        "retrain": _retrain(of, policy),
        "report": _report(of),
        "alarms": {
            kind: {"detail": alarm["detail"], "since": moment(alarm["since_us"])}
            for kind, alarm in monitor.alarms.items()
        },
    }


def moment(us: int | None) -> str | None:
    """A time as RFC 3339 in UTC, None for none."""
    if not us:
        return None
    return datetime.fromtimestamp(us / SECOND, UTC).isoformat(timespec="seconds")


def _status(monitor: Monitor, why: str) -> str:
    if why:
        return "fail"
    policy = monitor.policy
    fine = policy.level in (Level.OK, Level.WARMING_UP)
    return "pass" if fine and not monitor.alarms and not policy.person else "warn"


def _retrain(of: Seen, policy: Policy) -> dict[str, Any]:
    mine = [one for one in of.requests if one.outcome not in ("taken", "cancelled")]
    last = mine[-1] if mine else None
    episode = policy.episode
    if episode is not None and episode.requested_us is None:
        last = None  # the open one has asked for nothing yet
    left = policy.budget_left()
    return {
        "state": policy.phase.value,
        "dag_run_id": None if last is None else last.dag_run_id,
        "outcome": None if last is None else last.outcome,
        "error": "" if last is None else last.error,
        "reason": list(episode.reason) if episode is not None else [],
        "episode": policy.last_episode or None,
        "budget_left_7d": left[0],
        "budget_left_30d": left[-1],
        "cooldown_until": moment(policy.waits_until_us),
        "held_by": [hold.value for hold in policy.holds()] if episode is not None else [],
        "person_asked": policy.person,
        "acknowledged_by": policy.acked,
        "snoozed_until": (
            moment(policy.snoozed_until_us) if policy.snoozed_until_us > policy.at_us else None
        ),
        "dry_run": policy.dry_run,
    }


def _report(of: Seen) -> dict[str, Any] | None:
    if not of.reports:
        return None
    report = of.reports[-1]
    return {
        "episode": report.episode,
        "model_version": report.version,
        "link": report.link or None,
        "error": report.error,
    }


Figure = tuple[str, str, dict[str, str], float]
"""Name, meaning, labels, value; a name that ends in `_total` is a counter."""


def figures(of: Seen) -> Iterator[Figure]:
    """What is told to Prometheus."""
    monitor = of.monitor
    state = "blind" if blind(of) or monitor is None else monitor.policy.state
    for name in STATES:
        yield "drift_state", "1 for the state that it is in", {"state": name}, name == state
    open_ones = [one for one in of.requests if one.outcome == OPEN[0]]
    yield "retrain_outbox_pending", "Requests not delivered yet", {}, len(open_ones)
    oldest = min((one.created_us for one in open_ones), default=of.now_us)
    age_s = max(of.now_us - oldest, 0) / SECOND
    yield "retrain_outbox_oldest_seconds", "Age of the oldest of them", {}, age_s
    counts = Counter(
        ("manual" if one.conf["manual"] else _kind(one.conf["reason"]), outcome)
        for one in of.requests
        for outcome in _reached(one)
    )
    for (reason, outcome), count in sorted(counts.items()):
        labels = {"reason": reason, "outcome": outcome}
        yield "retrain_requests_total", "Requests, by what they reached", labels, count
    if monitor is None:
        return
    yield "drift_alarms_total", "Times that drift was entered", {}, monitor.policy.alarms
    at = monitor.evaluated_us / SECOND
    yield "drift_last_evaluation_timestamp_seconds", "Time of the last evaluation", {}, at
    yield "drift_lag_events", "Scans in the log that are not read yet", {}, monitor.lag
    for kind, alarm in monitor.alarms.items():
        yield "drift_monitor_alarm", "What a person must mend", {"alarm": kind}, bool(alarm)
    for reason, count in monitor.counts.items():
        yield "drift_scans_total", "Scans read, by what became of them", {"as": reason}, count
    told = monitor.evaluation or {}
    for name, window in told.get("windows", {}).items():
        yield "drift_window_events", "Scans in a window", {"window": name}, window["n"]
    for column, window, score, threshold in told.get("measures", []):
        labels = {"feature": column, "window": window}
        yield "drift_score", "Distance over its threshold; 1 is an alarm", labels, score
        yield "drift_threshold", "Calibrated distance", labels, threshold


def _reached(one: Asked) -> list[str]:
    """All that a request has reached: a counter never falls."""
    delivered = ["delivered"] if one.delivered_us is not None else []
    return ["requested", *delivered, *([] if one.outcome in OPEN else [one.outcome])]


def _kind(reason: list[str]) -> str:
    """A reason with few values, as a label must be."""
    sites = [name for name in reason if name.startswith("new_location ")]
    return "new_location" if sites and len(sites) == len(reason) else "drift"
