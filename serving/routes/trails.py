"""What is known of an EPC: its scans, and what was said of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Path, Request
from pydantic import BaseModel, Field

from logbook import Kind, LoggedVerdict, Record
from serving.problems import Problem, documented
from serving.routes import service_of
from serving.rows import LONGEST_CODE
from serving.security import allow
from trail.rules import FLAG
from trail.scan import ANOMALIES, EVENT_TYPES

router = APIRouter(tags=["trails"], dependencies=[allow("read")])

Code = Annotated[
    str,
    Path(
        min_length=1,
        max_length=LONGEST_CODE,
        examples=["001.8804823.1293291.010004.20250701.000004002"],
    ),
]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Verdict(BaseModel):
    """What was said of a scan, and when."""

    judged: datetime
    model_version: str | None = Field(
        None, description="Absent where the rules alone answered.", examples=["7"]
    )
    source: str = Field(examples=["model"])
    confidence: str = Field(examples=["high"])
    anomalies: list[str] = Field(examples=[["jump"]])
    scores: dict[str, float] = Field(
        description="Of each type, 0-100; flagged from 50 on.", examples=[{"jump": 87.2}]
    )
    evidence: str | None = None


class TrailScan(BaseModel):
    """A scan with what is said of it now; `given` was answered first, where that was something
    else.
    """

    event_id: int | None = None
    file_id: int | None = None
    location_id: str
    event_type: str
    event_time: datetime
    receipt: str
    verdict: Verdict
    given: Verdict | None = None


class Trail(BaseModel):
    """The scans of an EPC by event time."""

    epc_code: str
    scans: list[TrailScan]


@router.get(
    "/epc/{code:path}",
    summary="The trail of an EPC with its verdicts",
    response_model_exclude_none=True,
    responses=documented(401, 403, 404, 422, 429, 500, 503),
)
async def trail(code: Code, request: Request) -> Trail:
    """Each scan with the latest verdict on it, and the first one where it has been revised."""
    records = await asyncio.to_thread(service_of(request).log.trail, code)
    if not records:
        raise Problem(404, "no scan of this EPC was scored", "unknown-epc")
    return Trail(epc_code=code, scans=[_scan(record) for record in records])


def _scan(record: Record) -> TrailScan:
    scan = record.scan
    told = [(at, verdict) for at, _, verdict in record.verdicts if verdict.kind != Kind.SHADOW]
    latest, given = _verdict(*told[-1]), _verdict(*told[0])
    return TrailScan(
        event_id=scan.event_id if scan.event_id >= 0 else None,
        file_id=scan.file_id if scan.file_id >= 0 else None,
        location_id=scan.location_id,
        event_type=EVENT_TYPES[scan.op],
        event_time=_moment(scan.time_us),
        receipt=record.receipt,
        verdict=latest,
        given=given if given != latest else None,
    )


def _verdict(judged_us: int, verdict: LoggedVerdict) -> Verdict:
    score = dict(zip(ANOMALIES, verdict.score, strict=True))
    return Verdict(
        judged=_moment(judged_us),
        model_version=verdict.model_version or None,
        source=verdict.source,
        confidence=verdict.confidence,
        anomalies=[name for name, points in score.items() if points >= FLAG],
        scores={name: round(points, 1) for name, points in score.items()},
        evidence=verdict.evidence or None,
    )


def _moment(time_us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=time_us)
