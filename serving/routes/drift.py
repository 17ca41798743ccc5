"""Drift: what the monitor sees, what is done about it, and what a person says to that.

No load balancer may act on `/health/drift`: a drifted model is judged with until its successor is
there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from monitoring import policy as policies
from monitoring.policy import DAY, Change, Policy, RefusedError
from monitoring.status import document, moment
from monitoring.store import StoreError
from serving.drift import blind
from serving.problems import RETRY_S, Problem, documented
from serving.routes import service_of
from serving.security import allow

router = APIRouter(tags=["drift"])


class Reference(BaseModel):
    """What the windows are compared with."""

    id: str
    n: int = Field(description="Scans")
    clusters: int = Field(description="Boxes that they came in")
    days: int


class Calibration(BaseModel):
    """What the thresholds are worth."""

    model_config = ConfigDict(extra="allow")

    status: Literal["calibrated", "insufficient_reference"]
    unit: str = Field(description="What was resampled: box, day or weekday")
    target_p_30d: float = Field(description="Wanted probability of any false alarm in 30 days")
    estimate_p_30d: float | None = Field(description="The same as measured")
    ci95: tuple[float, float] | None
    reason: str = Field("", description="Why the reference is insufficient")
    blocks: int | None = None


class Feature(BaseModel):
    """A column in its worst window."""

    type: Literal["numeric", "categorical"]
    score: float = Field(description="d / threshold; from 1 on it is an alarm")
    d: float = Field(description="Distance from the reference, 0 to 1")
    threshold: float
    window: str
    n: int = Field(description="Scans in the window")
    p_value_iid: float = Field(
        description="As if scans were independent, which they are not; it decides nothing"
    )


class Window(BaseModel):
    """A window of recent scans."""

    tier: Literal["warn", "retrain"]
    n: int
    status: Literal["judged", "warming_up", "too_few"]


class Location(BaseModel):
    """A site that the reference has never seen."""

    status: Literal["new_location", "needs_labels", "ready"]
    n: int = Field(description="Scans there")
    labels: int = Field(description="Of them with an analyst's verdict")
    boxes: int | None = None
    days: int | None = None


class Retrain(BaseModel):
    """What is done about it."""

    state: Literal["idle", "held", "requested", "training", "cooldown"]
    dag_run_id: str | None = Field(description="The last run that was asked for")
    outcome: str | None = Field(None, description="What became of it")
    error: str = Field("", description="Why it could not be delivered yet")
    reason: list[str] = Field(description="Columns and sites that ask for it")
    episode: int | None = None
    budget_left_7d: int
    budget_left_30d: int
    cooldown_until: str | None
    held_by: list[str] = Field([], description="What keeps it from being asked for")
    person_asked: str = Field("", description="Why a person should look; empty for no reason")
    acknowledged_by: str = ""
    snoozed_until: str | None = None
    dry_run: bool = False


class Alarm(BaseModel):
    """Something that only a person can mend."""

    detail: str
    since: str | None


class Report(BaseModel):
    """The report on the last episode."""

    episode: int
    model_version: str
    link: str | None = Field(description="null until it is made")
    error: str = ""


class DriftHealth(BaseModel):
    """What the monitor sees."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = Field(description="Of this document")
    status: Literal["pass", "warn", "fail"] = Field(
        description="fail: the monitor is blind, and nothing is known of drift"
    )
    state: Literal["ok", "warn", "drift", "warming_up", "blind"]
    detail: str = Field("", description="Why the monitor is blind")
    model: str
    model_version: str | None = None
    reference: Reference | None = None
    evaluated_at: str | None = None
    clock: Literal["received", "event"] | None = Field(None, description="Time of a scan in use")
    clock_at: str | None = None
    lag_events: int | None = Field(None, description="Scans in the log that are not read yet")
    counts: dict[str, int] = Field({}, description="Scans read, by what became of them")
    calibration: Calibration | None = None
    max_score: float | None = None
    features: dict[str, Feature] = {}
    windows: dict[str, Window] = {}
    locations: dict[str, Location] = {}
    retrain: Retrain | None = None
    report: Report | None = None
    alarms: dict[str, Alarm] = {}


class HistoryLine(BaseModel):
    """Something that happened."""

    id: int
    at: str | None
    kind: str = Field(examples=["evaluation", "level", "opened", "requested", "closed"])
    facts: dict[str, Any]


class History(BaseModel):
    """What happened, newest first."""

    events: list[HistoryLine]
    next: int | None = Field(description="Ask for events `before` this one; null at the end")


class Snooze(BaseModel):
    """For how long nothing shall be asked for automatically."""

    model_config = ConfigDict(extra="forbid")

    days: Annotated[float, Field(ge=0, le=30, allow_inf_nan=False, description="0 ends a snooze")]


class DryRun(BaseModel):
    """Whether to decide without asking for anything."""

    model_config = ConfigDict(extra="forbid")

    on: bool


@router.get(
    "/health/drift",
    summary="Drift, and what is done about it",
    dependencies=[allow("read")],
    responses={
        **documented(401, 403, 429, 500),
        503: {"model": DriftHealth, "description": "The monitor is blind"},
    },
)
async def drift(request: Request, response: Response) -> DriftHealth:
    """200 for pass and warn, drift included; 503 only while nothing is known of drift: there is no
    reference, no recent evaluation, or no state database. Do not wire it to liveness or readiness.
    """
    told = await asyncio.to_thread(_told, request)
    if told["status"] == "fail":
        response.status_code = 503
    return DriftHealth(**told)


def _told(request: Request) -> dict[str, Any]:
    source = service_of(request).drift
    try:
        return document(source.seen())
    except StoreError as error:
        return blind(source.model, error)


@router.get(
    "/health/drift/history",
    summary="What happened",
    dependencies=[allow("read")],
    responses=documented(401, 403, 422, 429, 500, 503),
)
async def history(
    request: Request,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before: Annotated[int | None, Query(ge=1, le=2**63 - 1)] = None,
    kind: Annotated[list[str] | None, Query(max_length=20)] = None,
) -> History:
    """Evaluations, changes of level, episodes, requests, alarms, and what people said."""
    source = service_of(request).drift
    try:
        events = await asyncio.to_thread(source.history, limit, before, tuple(kind or ()))
    except StoreError as error:
        raise _away(error) from error
    return History(
        events=[
            HistoryLine(id=one.id, at=moment(one.at_us), kind=one.kind, facts=one.facts)
            for one in events
        ],
        next=events[-1].id if len(events) == limit else None,
    )


_ADMIN = {
    "dependencies": [allow("admin")],
    "responses": documented(401, 403, 413, 422, 429, 500, 503),
}


@router.post("/admin/drift/ack", summary="A person has seen it", **_ADMIN)  # type: ignore[arg-type]
async def ack(request: Request) -> DriftHealth:
    """Nobody is asked to look any more; what is decided stays the same."""
    return await _said(request, lambda policy, at, who: policies.acked(policy, who, at))


@router.post("/admin/drift/snooze", summary="Ask for nothing for a while", **_ADMIN)  # type: ignore[arg-type]
async def snooze(request: Request, asked: Snooze) -> DriftHealth:
    """Drift is told as before, and no retraining is asked for automatically until then."""

    def change(policy: Policy, at: int, who: str) -> Change:
        return policies.snoozed(policy, who, at + int(asked.days * DAY), at)

    return await _said(request, change)


@router.post(
    "/admin/drift/retrain",
    summary="Retrain now",
    dependencies=[allow("admin")],
    responses=documented(401, 403, 409, 413, 422, 429, 500, 503),
)
async def retrain(request: Request) -> DriftHealth:
    """Asks for a retraining whatever the statistics say; 409 where one has been asked for, where
    the budget is spent, during a dry run, and without a champion.
    """
    return await _said(request, lambda policy, at, who: policies.retrain(policy, who, at))


@router.post("/admin/drift/dry-run", summary="Decide, and ask for nothing", **_ADMIN)  # type: ignore[arg-type]
async def dry_run(request: Request, asked: DryRun) -> DriftHealth:
    """While it is on, the history tells what would have been asked for."""
    return await _said(request, lambda policy, at, who: policies.dry_run(policy, who, asked.on, at))


async def _said(request: Request, change: Callable[[Policy, int, str], Change]) -> DriftHealth:
    """Take a caller's word, and tell what comes of it."""
    source = service_of(request).drift
    who = str(request.scope.get("trailwatch.caller", "")) or "somebody"
    try:
        seen = await asyncio.to_thread(
            source.change, lambda policy, at: change(policy, at or time.time_ns() // 1000, who)
        )
    except RefusedError as error:
        raise Problem(409, str(error), "refused") from error
    except StoreError as error:
        raise _away(error) from error
    return DriftHealth(**document(seen))


def _away(error: StoreError) -> Problem:
    return Problem(503, str(error), "store-down", headers={"Retry-After": RETRY_S})
