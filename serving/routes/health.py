"""Health, readiness and metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from logbook import LogError
from serving.history import HistoryError
from serving.problems import Problem, documented
from serving.routes import Service, service_of
from serving.rows import BadRow
from serving.security import PUBLIC, allow

_LOG: Final = logging.getLogger("trailwatch")
_PATIENCE_S: Final = 3.0

router = APIRouter(tags=["operation"])


class Alive(BaseModel):
    """The process answers."""

    status: str = Field("alive", examples=["alive"])


class Health(BaseModel):
    """How the service is."""

    status: str = Field(description="ready, or not ready", examples=["ready"])
    judge: str = Field(
        description="Who judges: a model and its version, or the rules", examples=["trailwatch 7"]
    )
    reasons: list[str] = Field(description="Why it is not ready", examples=[[]])


@router.get(
    "/health", summary="How the service is", dependencies=[PUBLIC], responses=documented(500)
)
async def health(request: Request) -> Health:
    """Always 200 while the process answers; `/health/ready` says it with its status."""
    service = service_of(request)
    bad = await reasons(service)
    return Health(
        status="not ready" if bad else "ready",
        judge=who_judges(service),
        reasons=[f"{row.field} {row.reason}" for row in bad],
    )


@router.get(
    "/health/live", summary="The process answers", dependencies=[PUBLIC], responses=documented(500)
)
async def live() -> Alive:
    """Restart the process when this does not answer."""
    return Alive(status="alive")


@router.get(
    "/health/ready", summary="It can score", dependencies=[PUBLIC], responses=documented(500, 503)
)
async def ready(request: Request) -> Health:
    """503 with reasons while the history store or the prediction log does not answer.

    Having no model is no reason: the rules answer.
    """
    service = service_of(request)
    bad = await reasons(service)
    if bad:
        raise Problem(503, "the service is not ready; see errors", "not-ready", bad)
    return Health(status="ready", judge=who_judges(service), reasons=[])


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    dependencies=[allow("read")],
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **documented(401, 403, 429, 500),
    },
)
async def metrics(request: Request) -> Response:
    """Requests, latency, scans, anomalies, models and stores, in Prometheus' text format."""
    text = await asyncio.to_thread(generate_latest, service_of(request).metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


async def reasons(service: Service) -> list[BadRow]:
    """Why the service is not ready; empty where it is."""
    stores = {"history": service.history.ping, "log": service.log.ping}
    answers = await asyncio.gather(*(_answers(name, ping) for name, ping in stores.items()))
    return [
        BadRow(None, name, "does not answer")
        for name, ok in zip(stores, answers, strict=True)
        if not ok
    ]


async def _answers(name: str, ping: Callable[[], None]) -> bool:
    try:
        await asyncio.wait_for(asyncio.to_thread(ping), _PATIENCE_S)
    except (HistoryError, LogError, TimeoutError) as error:
        _LOG.warning("the %s does not answer: %s", name, error)
        return False
    return True


def who_judges(service: Service) -> str:
    """The model in use and its version, or the rules."""
    champion = service.judge.panel().champion
    return f"{champion.name} {champion.version}" if champion else "the rules (there is no model)"
