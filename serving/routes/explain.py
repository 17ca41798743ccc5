"""Why a scan has its scores, and what would be normal instead."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

import numpy as np
from fastapi import APIRouter, Path, Query, Request

from logbook import Record
from serving.explain import explain
from serving.history import HistoryError, Recall
from serving.problems import Problem, documented
from serving.routes import Service, service_of
from serving.security import allow
from trail.sites import Sites

router = APIRouter(tags=["trails"], dependencies=[allow("read")])

Type = Literal["epcFake", "epcDup", "locErr", "evtOrderErr", "jump"]


@dataclass(frozen=True, slots=True)
class _Remembered:
    recall: Recall
    sites: Sites
    at: int


@router.get(
    "/explain/{event_id}",
    summary="Why a scan has its scores",
    responses=documented(401, 403, 404, 422, 429, 500, 503),
)
async def explanation(
    event_id: Annotated[int, Path(ge=0, le=2**63 - 1, examples=[12345])],
    request: Request,
    anomaly: Annotated[Type | None, Query(description="Default: the highest score.")] = None,
    baseline: Annotated[Literal["mean", "zeros"], Query()] = "mean",
    counterfactual: Annotated[bool, Query(description="Look for what would be normal.")] = True,
) -> dict[str, Any]:
    """Integrated gradients for each scan and feature against the mean of the training scans (or
    zeros), with their completeness error; the rules' evidence, a sentence, and where one is simple
    a counterfactual. The scan is judged with all that is known now.
    """
    service = service_of(request)
    record = await asyncio.to_thread(service.log.event, event_id)
    if record is None:
        raise Problem(404, f"no scan with event id {event_id} was scored", "unknown-event")
    try:
        found = await service.in_core(_remembered, service, record)
    except HistoryError as error:
        raise Problem(503, str(error), "history-down") from error
    if found is None:
        raise Problem(404, "the trail of this scan has expired", "expired-trail")
    said = await asyncio.to_thread(
        explain,
        service.judge.panel().champion,
        found.sites,
        found.recall,
        record.scan.epc,
        found.at,
        anomaly,
        baseline,
        registry=service.judge.registry(),
        with_counterfactual=counterfactual,
        zone=ZoneInfo(service.settings.zone),
    )
    told: dict[str, Any] = _plain(said.to_json())
    return told


def _remembered(service: Service, record: Record) -> _Remembered | None:
    """The trail of a logged scan as it is remembered; None where it has expired."""
    found = service.scorer.now(record.scan.epc)
    if found is None:
        return None
    recall, judged = found
    scan, scans = record.scan, recall.scans
    ids = judged.sites.ids
    same = (recall.event_id == scan.event_id) & (scans.time_us == scan.time_us)
    same &= scans.op == scan.op
    rows = [i for i in np.flatnonzero(same).tolist() if ids[scans.site[i]] == scan.location_id]
    return _Remembered(recall, judged.sites, rows[0]) if rows else None


def _plain(value: Any) -> Any:
    """Without what is not known: answers hold no nulls."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
