"""What a caller is told when something is wrong: RFC 9457 problem documents, never a trace."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from logbook import LogError
from serving import wire
from serving.history import HistoryError
from serving.rows import BadRow

MEDIA_TYPE: Final = "application/problem+json"
RETRY_S: Final = "5"

_LOG: Final = logging.getLogger("trailwatch")


class Problem(HTTPException):
    """An answer that is a problem.

    Args:
        status: HTTP status.
        detail: what is wrong and what to do, for a person.
        kind: what kind of problem, for a program; "" where the status says it.
        bad: faults of single rows or fields.
        headers: further headers.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        kind: str = "",
        bad: list[BadRow] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, detail, headers)
        self.kind = kind
        self.bad = bad


def response(
    status: int,
    detail: str,
    kind: str = "",
    bad: list[BadRow] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document; arguments as those of `Problem`."""
    document: dict[str, Any] = {
        "type": f"urn:trailwatch:problem:{kind}" if kind else "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    if bad is not None:
        document["errors"] = wire.rejected(bad)
    return Response(wire.encode(document), status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of the app with a problem document.

    Errors that nobody expected are `telemetry.Watch`'s.
    """
    app.add_exception_handler(StarletteHTTPException, _on_http)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HistoryError, _on_store)
    app.add_exception_handler(LogError, _on_store)


async def _on_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    if isinstance(error, Problem):
        return response(error.status_code, str(error.detail), error.kind, error.bad, error.headers)
    if error.status_code == 400:  # FastAPI's, for a body that is not even UTF-8
        return response(422, "the body cannot be read: it is no JSON", "invalid")
    return response(
        error.status_code, _DETAILS.get(error.status_code, str(error.detail)), headers=error.headers
    )


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    bad = [
        BadRow(None, ".".join(str(place) for place in fault["loc"][1:]) or "body", fault["msg"])
        for fault in error.errors()
    ]
    return response(422, "the request cannot be read; see errors", "invalid", bad)


async def _on_store(request: Request, error: Exception) -> Response:
    _LOG.error("a store failed: %s", error)
    which = "history store" if isinstance(error, HistoryError) else "prediction log"
    return response(
        503,
        f"the {which} does not answer; nothing was acknowledged, so send the request again",
        "store-down",
        headers={"Retry-After": RETRY_S},
    )


_DETAILS: Final = {
    404: "there is nothing at this address; see /docs",
    405: "this address does not take that method; see /docs",
}

SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "title": "Problem",
    "description": "RFC 9457 problem details.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "errors": {"type": "array", "items": {"$ref": "#/components/schemas/Rejected"}},
    },
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with problems of these statuses."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        for status in statuses
    }
