"""The only place where things are wired: settings become a service."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse, JSONResponse

from logbook import LogError, PredictionLog
from logbook.opened import open_log
from monitoring.status import figures
from monitoring.store import StoreError
from serving import problems, rows, wire
from serving.drift import Drift, drift_url, monitor_inside
from serving.explain import stay_warm
from serving.history import History, HistoryError
from serving.history.keeping import wall_us
from serving.history.opened import open_history
from serving.jobs import Jobs
from serving.jobs.upload import REST_BYTES
from serving.judge import Judge, Model
from serving.limits import BodyLimit, Slots
from serving.page import page
from serving.routes import Service, admin, drift, explain, feedback, health, jobs, score, trails
from serving.scorer import Scorer
from serving.security import PUBLIC, Gate, undecided
from serving.settings import Settings, SettingsError
from serving.telemetry import Metrics, State, Watch
from serving.together import Together
from trail.scan import DAY_US

VERSION: Final = "0.1.0"
_MIB: Final = 1 << 20
_LOG: Final = logging.getLogger("trailwatch")
_ABOUT: Final = """\
Scores scans of a supply chain for five anomalies: `epcFake` (no genuine code), `epcDup` (one code
in two places), `locErr` (wrong place in the flow), `evtOrderErr` (wrong order of operations) and
`jump` (impossible movement). Errors are `application/problem+json` (RFC 9457)."""


def create_app(settings: Settings) -> FastAPI:
    """The service; it opens its stores and models when it starts, and closes them when it stops.

    Raises:
        SettingsError: the keys cannot be used, or are missing where they are needed.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with ExitStack() as stack:
            try:
                service = stack.enter_context(opened(settings, metrics))
            except Exception as error:
                app.state.failed = error  # for whoever started the server to tell
                raise
            app.state.service, app.state.jobs = service, service.jobs
            tasks = [
                asyncio.create_task(
                    keep_house(service.history, service.log, settings.keep_log_days)
                ),
                asyncio.create_task(keep_learning(service)),
            ]
            yield
            for task in tasks:
                task.cancel()

    app = FastAPI(
        title="Trailwatch",
        version=VERSION,
        description=_ABOUT,
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
    )
    app.state.gate = Gate(settings)
    problems.install(app)
    for topic in (score, jobs, trails, explain, feedback, health, drift, admin):
        app.include_router(topic.router)
    _document(app)
    app.add_middleware(
        BodyLimit,
        most=settings.most_body_mib * _MIB,
        apart={"/jobs": settings.most_upload_mib * _MIB + REST_BYTES},
    )
    app.add_middleware(Watch, metrics=metrics)
    if loose := undecided(app):
        raise AssertionError(f"nothing says who may use {', '.join(loose)}; add allow() or PUBLIC")
    return app


@contextmanager
def opened(settings: Settings, metrics: Metrics) -> Iterator[Service]:
    """Stores, models and core while the service runs.

    Raises:
        HistoryError, LogError: a store cannot be opened.
    """
    rows.warm_up(settings.zone)
    with ExitStack() as stack:
        history, log = _stores(settings)
        stack.callback(history.close)
        stack.callback(log.close)
        history = metrics.timed(history, "history", ("remember", "recall", "mark"))
        log = metrics.timed(log, "log", ("append_all", "given", "trail"))
        judge = Judge(settings)
        judge.start()
        stack.callback(judge.stop)
        scorer = Scorer(settings, history, log, judge)
        thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        stack.callback(thread.shutdown)
        files = Jobs(
            settings.uploads,
            settings,
            lambda: _folder(judge.panel().champion),
            at_once=settings.jobs_at_once,
            keep_days=settings.keep_job_days,
            keep_free_mib=settings.keep_free_mib,
        )
        files.start()
        stack.callback(files.stop)
        watched = Drift(drift_url(settings), settings.model)
        stack.callback(watched.close)
        if settings.monitor == "inside":
            monitor = monitor_inside(settings, lambda said: _LOG.warning("the monitor: %s", said))
            monitor.start()
            stack.callback(monitor.stop)
        slots = Slots(settings.concurrent)
        together = Together(scorer.score_some, thread)
        service = Service(
            settings, metrics, slots, history, log, judge, scorer, thread, together, files, watched
        )
        metrics.states(lambda: states(service))
        stack.enter_context(_explaining(service))
        yield service


@contextmanager
def _explaining(service: Service) -> Iterator[None]:
    """Explanations are made ready beside everything else, where the settings say so."""
    stopping = Event()
    if service.settings.explain == "warm":
        # A daemon: the service need not wait for torch to end.
        Thread(
            target=stay_warm,
            args=(lambda: service.judge.panel().champion, stopping),
            name="explain",
            daemon=True,
        ).start()
    try:
        yield
    finally:
        stopping.set()


def _stores(settings: Settings) -> tuple[History, PredictionLog]:
    """History and log.

    Raises:
        SettingsError: a URL cannot be used.
        HistoryError, LogError: a store cannot be opened.
    """
    try:
        history = open_history(
            settings.history_url,
            keep_days_after_sale=settings.keep_days_after_sale,
            keep_days_idle=settings.keep_days_idle,
            durable=settings.durable,
        )
        try:
            return history, open_log(settings.log_url, durable=settings.durable)
        except BaseException:
            history.close()
            raise
    except ValueError as error:
        raise SettingsError(str(error)) from error


def check(settings: Settings) -> None:
    """Open the stores once, so that what is wrong with them is told before processes start.

    Raises:
        SettingsError: a setting cannot be used, or keys are missing where they are needed.
        HistoryError, LogError: a store cannot be opened.
    """
    Gate(settings)
    for store in _stores(settings):
        store.close()


async def keep_house(
    history: History,
    log: PredictionLog,
    keep_log_days: float,
    clock: Callable[[], int] = wall_us,
    every_s: float = 3600,
) -> None:
    """Forget trails and logged requests whose time has come, now and then, until cancelled."""
    while True:
        try:
            gone = await asyncio.to_thread(history.expire, clock())
            _LOG.info("forgot %d trails", gone)
        except HistoryError as error:
            _LOG.warning("no trails were forgotten: %s", error)
        if keep_log_days:
            before_us = clock() - int(keep_log_days * DAY_US)
            try:
                gone = await asyncio.to_thread(log.forget, before_us)
                _LOG.info("forgot %d logged scans", gone)
            except LogError as error:
                _LOG.warning("no logged scans were forgotten: %s", error)
        await asyncio.sleep(every_s)


async def keep_learning(service: Service, every_s: float = 1.0) -> None:
    """Teach the history store what was judged while it was away, until cancelled."""
    while True:
        try:
            while taught := await service.in_core(service.scorer.catch_up):
                _LOG.info("history learned %d scans that were judged without it", taught)
        except (HistoryError, LogError) as error:
            _LOG.debug("history cannot learn yet: %s", error)
        await asyncio.sleep(every_s)


def _folder(champion: Model | None) -> Path | None:
    return champion.bundle.folder if champion else None


def states(service: Service) -> list[State]:
    """What is asked when metrics are read: the models in use, and what waits."""
    panel = service.judge.panel()
    models = {"champion": panel.champion, "challenger": panel.challenger}
    told: list[State] = [
        (
            "trailwatch_model_info",
            "Models in use",
            {
                "role": role,
                "name": model.name,
                "version": model.version,
                "digest": model.bundle.digest[:12],
            },
            1,
        )
        for role, model in models.items()
        if model
    ]
    told.append(
        ("trailwatch_queue_depth", "Scoring requests in work or waiting", {}, service.slots.taken)
    )
    try:
        waiting = service.log.figures()["waiting"]
        told.append(("trailwatch_scans_not_remembered", "Scans to be remembered", {}, waiting))
        for name, ping in (("history", service.history.ping), ("log", service.log.ping)):
            told.append(("trailwatch_store_up", "The store answers", {"store": name}, _up(ping)))
        for state, count in service.jobs.figures().items():
            told.append(("trailwatch_jobs", "Jobs by state", {"state": state}, count))
    except (LogError, OSError) as error:
        _LOG.warning("metrics are incomplete: %s", error)
    return [*told, *_drift_states(service)]


def _drift_states(service: Service) -> list[State]:
    try:
        return list(figures(service.drift.seen()))
    except StoreError as error:
        _LOG.debug("nothing is known of drift: %s", error)
        return [("drift_state", "1 for the state that it is in", {"state": "blind"}, 1)]


def _up(ping: Callable[[], None]) -> int:
    try:
        ping()
    except (HistoryError, LogError):
        return 0
    return 1


def _document(app: FastAPI) -> None:
    """Serve the OpenAPI document and its page; add the schemas of the scoring routes."""
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(
                get_openapi(
                    title=app.title,
                    version=app.version,
                    description=app.description,
                    routes=app.routes,
                )
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(wire.schemas(), Problem=problems.SCHEMA)
            for theirs in ("HTTPValidationError", "ValidationError"):
                schemas.pop(theirs, None)
            for operation in (o for path in document["paths"].values() for o in path.values()):
                if "422" in operation["responses"]:  # FastAPI's own has another shape than ours
                    operation["responses"]["422"] = problems.documented(422)[422]
        return document

    app.openapi = openapi  # type: ignore[method-assign]

    @app.get("/openapi.json", include_in_schema=False, dependencies=[PUBLIC])
    async def openapi_json() -> JSONResponse:
        return JSONResponse(app.openapi())

    @app.get("/docs", include_in_schema=False, dependencies=[PUBLIC])
    async def docs() -> HTMLResponse:
        return HTMLResponse(page(app.openapi()))
