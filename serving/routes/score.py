"""Scoring: `/score`, and the routes that existing back ends call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Query, Request, Response

from serving import rows, wire
from serving.problems import Problem, documented
from serving.routes import Service, service_of
from serving.rows import BadRow, BodyError, Rows
from serving.scorer import Ask
from serving.security import allow
from serving.wire import Manner

LEGACY: Final = "/api/manager/export-and-analyze-async"
MANNERS: Final = {
    "/score": Manner("model", full=True),
    LEGACY: Manner("rules"),
    f"{LEGACY}/svm": Manner("svm"),
    f"{LEGACY}/lstm": Manner("model"),
}
_SUMMARIES: Final = {
    "/score": "Score scans with the model in use",
    LEGACY: "Score scans with the rules",
    f"{LEGACY}/svm": "Score scans with the one-class SVM",
    f"{LEGACY}/lstm": "Score scans with the model in use, in the shape of existing back ends",
}
_DESCRIPTION: Final = """\
Every scan is remembered, judged with its whole trail and its lot, and logged before the answer
leaves. Sending the same scans again is harmless: they get the same answer.

Anomalous scans and EPCs only are listed. Rows of several `file_id`s get an array of reports, in
order of appearance; rows of one, an object. The header `X-Receipt` holds the receipt's id;
`X-Degraded: true` says that the history could not be asked."""
_LARGE_BYTES: Final = 1 << 16

OnError = Annotated[
    Literal["refuse", "skip"],
    Query(
        description="What rows that cannot be read do: `refuse`: the whole request, nothing is "
        "stored; `skip`: the others are scored, and these are listed in `rejected`."
    ),
]

router = APIRouter(tags=["scoring"], dependencies=[allow("score")])


def _endpoint(path: str, manner: Manner) -> Callable[..., Awaitable[Response]]:
    async def score(request: Request, on_error: OnError = "refuse") -> Response:
        service = service_of(request)
        text = await request.body()
        with service.slots.one():
            good, bad = await _read(service, text)
            if bad and (on_error == "refuse" or not len(good)):
                raise Problem(422, _refusal(good, bad), "bad-rows", bad)
            answer = await service.together.score(Ask(good, path, manner.by))
        service.metrics.scored(path, good, answer, len({row.index for row in bad}))
        body = wire.answer_body(good, answer, manner, bad if on_error == "skip" else None)
        headers = {"X-Receipt": answer.receipt}
        if answer.degraded:
            headers["X-Degraded"] = "true"
        return Response(body, headers=headers, media_type="application/json")

    return score


async def _read(service: Service, body: bytes) -> tuple[Rows, list[BadRow]]:
    settings = service.settings
    values = body, settings.zone, settings.most_rows
    try:
        if len(body) < _LARGE_BYTES:
            return rows.read(*values)
        return await asyncio.to_thread(rows.read, *values)  # so that other requests go on
    except BodyError as error:
        detail = f"the body cannot be read: {error.bad.field} {error}"
        raise Problem(422, detail, "bad-body", [error.bad]) from error


def _refusal(good: Rows, bad: list[BadRow]) -> str:
    wrong = len({row.index for row in bad})
    if not len(good):
        return f"none of the {wrong} rows can be read, and nothing was stored; see errors"
    return (
        f"{wrong} of {wrong + len(good)} rows cannot be read, and nothing was stored; see errors, "
        "or score the others with ?on_error=skip"
    )


def _documented(manner: Manner) -> dict[str, Any]:
    name = "ScoredFileReport" if manner.full else "FileReport"
    report = {"$ref": f"#/components/schemas/{name}"}
    example = wire.example_answer(manner)
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": wire.request_schema(),
                    "example": wire.EXAMPLE_REQUEST,
                }
            },
        },
        "responses": {
            "200": {
                "description": "The anomalies among the scans.",
                "content": {
                    "application/json": {
                        "schema": {
                            "anyOf": [report, {"type": "array", "minItems": 2, "items": report}]
                        },
                        "examples": {
                            "one file": {"value": example},
                            "several files": {"value": [example, {**example, "fileId": 2}]},
                        },
                    }
                },
            }
        },
    }


for _path, _manner in MANNERS.items():
    router.add_api_route(
        _path,
        _endpoint(_path, _manner),
        methods=["POST"],
        summary=_SUMMARIES[_path],
        description=_DESCRIPTION,
        operation_id="score" + _path.removeprefix(LEGACY).replace("/", "_"),
        response_class=Response,
        responses=documented(401, 403, 413, 422, 429, 500, 503),
        openapi_extra=_documented(_manner),
    )
