"""What analysts say of verdicts."""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, Literal

import pyarrow as pa
from fastapi import APIRouter, Request, Response
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints

from intake import times
from logbook import Feedback, PredictionLog, Record
from serving.problems import Problem, documented
from serving.routes import service_of
from serving.rows import LONGEST_CODE, MOST_ID
from serving.security import allow
from trail.scan import ANOMALIES

router = APIRouter(tags=["feedback"], dependencies=[allow("feedback")])

Line = Annotated[
    str, StringConstraints(strip_whitespace=True, min_length=1, pattern=r"^[^\x00-\x1f\x7f]+$")
]


class Said(BaseModel):
    """An analyst's verdict on one type of anomaly of one scan.

    The scan is named by its `event_id`, or by `epc_code` and `event_time`.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "event_id": 12347,
                    "anomaly": "jump",
                    "verdict": "wrong",
                    "who": "j.kim",
                    "why": "the box went by plane",
                }
            ]
        }
    )

    event_id: Annotated[int, Field(ge=0, le=MOST_ID)] | None = Field(
        None, validation_alias=AliasChoices("event_id", "eventId")
    )
    epc_code: Annotated[Line, Field(max_length=LONGEST_CODE)] | None = Field(
        None, validation_alias=AliasChoices("epc_code", "epcCode")
    )
    event_time: Annotated[Line, Field(max_length=40)] | None = Field(
        None, validation_alias=AliasChoices("event_time", "eventTime")
    )
    anomaly: Literal["epcFake", "epcDup", "locErr", "evtOrderErr", "jump"]
    verdict: Literal["right", "wrong"] = Field(
        description="right: there is such an anomaly; wrong: there is none."
    )
    who: Annotated[Line, Field(max_length=200)]
    why: Annotated[
        str, StringConstraints(max_length=4000, pattern=r"^[^\x00-\x08\x0b-\x1f\x7f]*$")
    ] = ""


class Noted(BaseModel):
    """What became of a verdict; `new` is false where the same person had said the same."""

    new: bool = Field(examples=[True])
    epc_code: str = Field(examples=["001.8804823.1293291.010004.20250701.000004002"])


assert set(ANOMALIES) == {"epcFake", "epcDup", "locErr", "evtOrderErr", "jump"}


@router.post(
    "/feedback",
    summary="Say that a verdict is right or wrong",
    status_code=201,
    responses={
        200: {"model": Noted, "description": "The same person had said the same before."},
        **documented(401, 403, 404, 413, 422, 429, 500, 503),
    },
)
async def feedback(said: Said, request: Request, response: Response) -> Noted:
    """It overrides the label of the scan when the next model is trained.

    Saying the same again changes nothing (200). A later word of the same person on the same scan
    and type replaces the earlier one.
    """
    service = service_of(request)
    new, epc = await asyncio.to_thread(_note, service.log, said, service.settings.zone)
    response.status_code = 201 if new else 200
    return Noted(new=new, epc_code=epc)


def _note(log: PredictionLog, said: Said, zone: str) -> tuple[bool, str]:
    scan = _scan(log, said, zone).scan
    new = log.add_feedback(
        Feedback(
            event_id=scan.event_id,
            epc=scan.epc,
            time_us=scan.time_us,
            anomaly=said.anomaly,
            right=said.verdict == "right",
            who=said.who,
            why=said.why,
            given_us=time.time_ns() // 1000,
        )
    )
    return new, scan.epc


def _scan(log: PredictionLog, said: Said, zone: str) -> Record:
    """The scan that somebody speaks of.

    Raises:
        Problem: 422 where it is not named, 404 where the log has no such scan.
    """
    if said.event_id is None and (said.epc_code is None or said.event_time is None):
        raise Problem(422, "name the scan by event_id, or by epc_code and event_time", "invalid")
    if said.event_id is not None:
        record = log.event(said.event_id)
        if record is None or said.epc_code not in (None, record.scan.epc):
            raise Problem(404, f"no scan with event_id {said.event_id} was scored", "unknown-scan")
        return record
    assert said.epc_code is not None and said.event_time is not None
    time_us, fault = times.parse(pa.array([said.event_time]), zone)
    if fault[0]:
        raise Problem(422, times.reason(int(fault[0]), said.event_time), "invalid")
    found = [r for r in log.trail(said.epc_code) if r.scan.time_us == time_us[0]]
    if not found:
        raise Problem(404, "no scan of this EPC at this time was scored", "unknown-scan")
    return found[-1]
