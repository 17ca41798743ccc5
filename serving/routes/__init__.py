"""The routes of the service, one file a topic; each says who may use it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import HTTPConnection

from logbook import PredictionLog
from serving.drift import Drift
from serving.history import History
from serving.jobs import Jobs
from serving.judge import Judge
from serving.limits import Slots
from serving.scorer import Scorer
from serving.settings import Settings
from serving.telemetry import Metrics
from serving.together import Together

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Service:
    """What the routes work with; `serving.app` puts it together.

    Attributes:
        settings: where things are.
        metrics: what is counted.
        slots: places for scoring requests.
        history: the store of trails.
        log: the prediction log.
        judge: the models in use.
        scorer: the core.
        thread: the one thread that the core runs in.
        together: hands requests to the core.
        jobs: large files.
        drift: what the monitor sees.
    """

    settings: Settings
    metrics: Metrics
    slots: Slots
    history: History
    log: PredictionLog
    judge: Judge
    scorer: Scorer
    thread: Executor
    together: Together
    jobs: Jobs
    drift: Drift

    async def in_core(self, call: Callable[..., T], *values: object) -> T:
        """Call the core in its thread."""
        return await asyncio.get_running_loop().run_in_executor(self.thread, call, *values)


def service_of(connection: HTTPConnection) -> Service:
    """The service that a request or WebSocket has reached."""
    service: Service = connection.app.state.service
    return service
