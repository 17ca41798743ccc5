# ruff: noqa: N815
"""The wire format: what back ends send and get. The only place with camelCase.

A request is `{"data": [{...}, ...]}`; each row's fields may be written in snake_case or camelCase.
Answers list anomalous scans and EPCs only, hold no nulls, and give scores from 0 to 100.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from trail.scan import ANOMALIES, EVENT_TYPES

if TYPE_CHECKING:
    from serving.rows import BadRow, Rows
    from serving.scorer import Answer

FIELDS: Final = {
    "epc_code": "epcCode",
    "location_id": "locationId",
    "event_type": "eventType",
    "event_time": "eventTime",
    "event_id": "eventId",
    "file_id": "fileId",
}
"""Fields of a row that count, and their other spelling; the first four are needed."""


class Scan(msgspec.Struct, gc=False):
    """One row of a request. Where both spellings are there, snake_case counts."""

    epc_code: str | None = None
    location_id: str | int | None = None
    event_type: str | None = None
    event_time: str | int | float | None = None
    event_id: str | int | None = None
    file_id: str | int | None = None
    epcCode: str | None = None
    locationId: str | int | None = None
    eventType: str | None = None
    eventTime: str | int | float | None = None
    eventId: str | int | None = None
    fileId: str | int | None = None


class Body(msgspec.Struct, gc=False):
    """A scoring request."""

    data: list[Scan]


class Event(msgspec.Struct, kw_only=True):
    """An anomalous scan: the types that it is flagged for, with their scores.

    `lstmScore` is the model's probability of the flagged types, in percent. `index` is the row's
    place in `data`; the routes of existing back ends show it where a row has no event id.
    """

    eventId: int | UnsetType = UNSET
    index: int | UnsetType = UNSET
    epcFake: bool | UnsetType = UNSET
    epcFakeScore: float | UnsetType = UNSET
    epcDup: bool | UnsetType = UNSET
    epcDupScore: float | UnsetType = UNSET
    locErr: bool | UnsetType = UNSET
    locErrScore: float | UnsetType = UNSET
    evtOrderErr: bool | UnsetType = UNSET
    evtOrderErrScore: float | UnsetType = UNSET
    jump: bool | UnsetType = UNSET
    jumpScore: float | UnsetType = UNSET
    lstmScore: dict[str, float] | UnsetType = UNSET


class ScoredEvent(Event, kw_only=True):
    """An anomalous scan as `/score` lists it: also who says so, how surely, and why.

    `modelVersion` is absent where the rules alone answered.
    """

    epcCode: str
    modelVersion: str | UnsetType = UNSET
    source: str
    confidence: str
    evidence: str


class Counts(msgspec.Struct, kw_only=True):
    """Numbers of anomalies; `totalEvents` is their sum."""

    totalEvents: int
    jumpCount: int
    evtOrderErrCount: int
    epcFakeCount: int
    epcDupCount: int
    locErrCount: int


class EpcCounts(Counts, kw_only=True):
    """Numbers of anomalies of one EPC; `totalEvents` is their sum."""

    epcCode: str


class Rejected(msgspec.Struct, kw_only=True):
    """What is wrong with a field of a row; without `index`, with the body as a whole."""

    index: int | UnsetType = UNSET
    field: str
    reason: str


class FileReport(msgspec.Struct, kw_only=True):
    """Anomalies in the scans of one file; `fileId` is absent where the rows have none.

    `rejected` is there with `on_error=skip`, in the first report of an answer.
    """

    fileId: int | UnsetType = UNSET
    EventHistory: Sequence[Event]
    epcAnomalyStats: list[EpcCounts]
    fileAnomalyStats: Counts
    rejected: list[Rejected] | UnsetType = UNSET


class ScoredFileReport(FileReport, kw_only=True):
    """The same as `/score` answers; what follows tells of the whole request.

    `modelVersion` gave most verdicts; it is absent where the rules alone answered. `degraded`:
    the history could not be asked, and the rules judged what the request holds. `repeated`: rows
    that had been answered before and got that answer again.
    """

    EventHistory: Sequence[ScoredEvent]
    receipt: str
    modelVersion: str | UnsetType = UNSET
    degraded: bool
    scored: int
    repeated: int
    latencyMs: float


@dataclass(frozen=True, slots=True)
class Manner:
    """How a route answers.

    Attributes:
        by: who judges, "model", "rules" or "svm".
        full: with receipt, versions, sources and evidence.
    """

    by: str
    full: bool = False


_DECODER: Final = msgspec.json.Decoder(Body)
_ENCODER: Final = msgspec.json.Encoder()
_COUNTS: Final = tuple(name for name in Counts.__struct_fields__ if name != "totalEvents")
_COLUMN: Final = [ANOMALIES.index(name.removesuffix("Count")) for name in _COUNTS]


def decode(body: bytes) -> list[Scan]:
    """The rows of a request, types checked.

    Raises:
        msgspec.DecodeError: it is no JSON, or a value has another type.
        UnicodeDecodeError: it is no UTF-8.
        RecursionError: it is nested too deep.
    """
    return _DECODER.decode(body).data


def encode(value: object) -> bytes:
    """JSON."""
    return _ENCODER.encode(value)


def rejected(bad: list[BadRow]) -> list[Rejected]:
    """Bad rows as they are written."""
    return [
        Rejected(
            index=UNSET if row.index is None else row.index, field=row.field, reason=row.reason
        )
        for row in bad
    ]


def answer_body(
    rows: Rows, answer: Answer, manner: Manner, skipped: list[BadRow] | None = None
) -> bytes:
    """The JSON of an answer: an object, or an array of objects where there are several files.

    Args:
        rows: the n scored rows.
        answer: the verdicts on them.
        manner: how the route answers.
        skipped: rows that were left out; None where the caller did not ask to skip any.
    """
    reports = _reports(rows, answer, manner)
    if skipped is not None:
        reports[0].rejected = rejected(skipped)
    return encode(reports[0] if len(reports) == 1 else reports)


def _reports(rows: Rows, answer: Answer, manner: Manner) -> list[FileReport]:
    """One report a file, in order of appearance; one without a file where there are no rows."""
    flagged = np.flatnonzero(answer.flag.any(axis=1))
    if len(rows) == 0 or (rows.file_id == rows.file_id[0]).all():
        file_id = int(rows.file_id[0]) if len(rows) else -1
        return [_report(file_id, flagged.tolist(), rows, answer, manner)]
    of_file: dict[int, list[int]] = {file_id: [] for file_id in rows.file_id.tolist()}
    for i, file_id in zip(flagged.tolist(), rows.file_id[flagged].tolist(), strict=True):
        of_file[file_id].append(i)
    return [_report(file_id, i, rows, answer, manner) for file_id, i in of_file.items()]


def _report(
    file_id: int, flagged: list[int], rows: Rows, answer: Answer, manner: Manner
) -> FileReport:
    flag = answer.flag[flagged][:, _COLUMN]
    codes: dict[str, list[int]] = {}
    for k, i in enumerate(flagged):
        codes.setdefault(rows.epc[i], []).append(k)
    common: dict[str, Any] = {
        "fileId": file_id if file_id >= 0 else UNSET,
        "EventHistory": [_event(i, rows, answer, manner) for i in flagged],
        "epcAnomalyStats": [
            EpcCounts(epcCode=code, **_counts(flag[places])) for code, places in codes.items()
        ],
        "fileAnomalyStats": Counts(**_counts(flag)),
    }
    if not manner.full:
        return FileReport(**common)
    return ScoredFileReport(
        **common,
        receipt=answer.receipt,
        modelVersion=_main_version(answer) or UNSET,
        degraded=answer.degraded,
        scored=len(rows),
        repeated=int(answer.repeated.sum()),
        latencyMs=round(answer.took_us / 1000, 3),
    )


def _counts(flag: np.ndarray[tuple[int, int], np.dtype[np.bool_]]) -> dict[str, int]:
    each = flag.sum(axis=0).tolist()
    return {"totalEvents": sum(each), **dict(zip(_COUNTS, each, strict=True))}


def _event(i: int, rows: Rows, answer: Answer, manner: Manner) -> Event:
    event_id = int(rows.event_id[i])
    version = answer.version[i]
    values: dict[str, object] = {}
    if event_id >= 0:
        values["eventId"] = event_id
    if manner.full or event_id < 0:
        values["index"] = int(rows.place[i])
    flagged = [k for k, flag in enumerate(answer.flag[i].tolist()) if flag]
    score = answer.score[i].tolist()
    for k in flagged:
        values[ANOMALIES[k]] = True
        values[f"{ANOMALIES[k]}Score"] = round(score[k], 1)
    if manner.by == "model" and version:
        share = answer.model[i].tolist()
        values["lstmScore"] = {ANOMALIES[k]: round(100 * share[k], 1) for k in flagged}
    if not manner.full:
        return Event(**values)  # type: ignore[arg-type]
    return ScoredEvent(
        **values,  # type: ignore[arg-type]
        epcCode=rows.epc[i],
        modelVersion=version or UNSET,
        source=answer.source[i],
        confidence=answer.confidence[i],
        evidence=answer.evidence[i],
    )


def _main_version(answer: Answer) -> str:
    """The version that gave most verdicts, "" where none did."""
    versions = [version for version in answer.version if version]
    return max(set(versions), key=versions.count) if versions else ""


EXAMPLE_REQUEST: Final = {
    "data": [
        {
            "event_id": 12345,
            "epc_code": "001.8804823.1293291.010004.20250701.000004002",
            "location_id": 101,
            "business_step": "Factory",
            "event_type": "Aggregation",
            "event_time": "2024-01-15T08:30:00Z",
            "file_id": 1,
        }
    ]
}
_COUNTS_EXAMPLE: Final = {
    "totalEvents": 2,
    "jumpCount": 1,
    "evtOrderErrCount": 0,
    "epcFakeCount": 0,
    "epcDupCount": 0,
    "locErrCount": 1,
}
_FLAGS_EXAMPLE: Final = {"locErr": True, "locErrScore": 64.0, "jump": True, "jumpScore": 87.2}
_STATS_EXAMPLE: Final = {
    "epcAnomalyStats": [
        {"epcCode": "001.8804823.1293291.010004.20250701.000004002", **_COUNTS_EXAMPLE}
    ],
    "fileAnomalyStats": _COUNTS_EXAMPLE,
}


def example_answer(manner: Manner) -> dict[str, Any]:
    """An answer of a route as its documentation shows it."""
    event: dict[str, Any] = {"eventId": 12347, **_FLAGS_EXAMPLE}
    if manner.by == "model":
        event["lstmScore"] = {"locErr": 58.3, "jump": 91.0}
    if not manner.full:
        return {"fileId": 1, "EventHistory": [event], **_STATS_EXAMPLE}
    event = {
        **event,
        "index": 2,
        "epcCode": _STATS_EXAMPLE["epcAnomalyStats"][0]["epcCode"],  # type: ignore[index]
        "modelVersion": "7",
        "source": "model",
        "confidence": "high",
        "evidence": "locErr: No goods ever went from WMS 3 to Retailer 114. jump: Arrived 212 km "
        "away 9 minutes after the previous scan; this route takes 3.1 to 6.4 hours.",
    }
    return {
        "fileId": 1,
        "EventHistory": [event],
        **_STATS_EXAMPLE,
        "receipt": "3f1c9a52b7d84e60",
        "modelVersion": "7",
        "degraded": False,
        "scored": 3,
        "repeated": 0,
        "latencyMs": 3.2,
    }


def request_schema() -> dict[str, Any]:
    """The JSON Schema of a scoring request; what it does not name is ignored."""
    number = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}
    digits = {"type": "string", "pattern": "^[0-9]{1,18}$"}
    fields: dict[str, dict[str, Any]] = {
        "epc_code": {"type": "string", "description": "The code as scanned, genuine or not."},
        "location_id": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
        "event_type": {"type": "string", "enum": list(EVENT_TYPES)},
        "event_time": {
            "anyOf": [{"type": "string"}, {"type": "number"}],
            "description": "ISO 8601, with or without a zone, or a time since 1970 in seconds "
            "(10 digits), milliseconds (13) or microseconds (16).",
        },
        "event_id": {"anyOf": [number, digits], "description": "Names the scan in answers."},
        "file_id": {"anyOf": [number, digits], "description": "Each file gets its own report."},
    }
    row = {
        "type": "object",
        "description": "Names may be in camelCase too (`eventId`, `epcCode`, ...).",
        "required": list(FIELDS)[:4],
        "properties": fields,
    }
    return {
        "type": "object",
        "required": ["data"],
        "properties": {"data": {"type": "array", "minItems": 1, "items": row}},
    }


def schemas() -> dict[str, Any]:
    """The JSON Schemas of all answers, by name, for `#/components/schemas`."""
    return msgspec.json.schema_components(
        [FileReport, ScoredFileReport, Rejected], ref_template="#/components/schemas/{name}"
    )[1]
