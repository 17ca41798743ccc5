"""What an operator sees: metrics for Prometheus, and one JSON line an event in the log."""

from __future__ import annotations

import json
import logging
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import problems
from trail.scan import ANOMALIES
from trail.verdict import Source

if TYPE_CHECKING:
    from serving.rows import Rows
    from serving.scorer import Answer

Store = TypeVar("Store")
State = tuple[str, str, dict[str, str], float]
"""Name, meaning, labels, value; a counter where the name ends in `_total`, else a gauge."""

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request being answered, "" outside of one."""

_LOG: Final = logging.getLogger("trailwatch")
_ACCESS: Final = logging.getLogger("trailwatch.access")
_GIVEN_ID: Final = re.compile(r"[\w.:-]{1,128}", re.ASCII)
_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_STORE_SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1, 5)


class Metrics:
    """The metrics of one app.

    Attributes:
        registry: what `/metrics` writes.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "trailwatch_requests", "Requests", ["method", "route", "status"], registry=registry
        )
        self.seconds = Histogram(
            "trailwatch_request_seconds",
            "Time from a request's first byte to its answer's last",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.scans = Counter("trailwatch_scans", "Scored scans", ["route"], registry=registry)
        self.sources = Counter(
            "trailwatch_verdicts", "Scored scans by who judged them", ["source"], registry=registry
        )
        self.anomalies = Counter(
            "trailwatch_anomalies", "Flags by type", ["anomaly"], registry=registry
        )
        self.rejected = Counter(
            "trailwatch_rejected_rows", "Rows that could not be read", registry=registry
        )
        self.degraded = Counter(
            "trailwatch_degraded_answers", "Answers without history", registry=registry
        )
        self.store_seconds = Histogram(
            "trailwatch_store_seconds",
            "Time in a call of a store",
            ["store", "operation"],
            buckets=_STORE_SECONDS,
            registry=registry,
        )
        self._cold_share = Gauge(
            "trailwatch_cold_share",
            "Share of the scored scans that had too little history for the model",
            registry=registry,
        )
        self._counted = self._cold = 0
        for name in ANOMALIES:
            self.anomalies.labels(name)

    def scored(self, route: str, rows: Rows, answer: Answer, rejected: int) -> None:
        """Count the scans of an answer."""
        self.scans.labels(route).inc(len(rows))
        self.rejected.inc(rejected)
        self.degraded.inc(answer.degraded)
        for source in set(answer.source):
            self.sources.labels(source).inc(answer.source.count(source))
        for name, flags in zip(ANOMALIES, answer.flag.sum(axis=0).tolist(), strict=True):
            self.anomalies.labels(name).inc(flags)
        self._counted += len(rows)
        self._cold += answer.source.count(Source.COLD)
        self._cold_share.set(self._cold / max(self._counted, 1))

    def states(self, status: Callable[[], list[State]]) -> None:
        """Gauges whose values `status` tells when metrics are read."""
        self.registry.register(_States(status))

    def timed(self, store: Store, name: str, operations: Iterable[str]) -> Store:
        """The store, the time of whose operations is measured; everything else is handed on."""
        return _Timed(store, name, operations, self.store_seconds)  # type: ignore[return-value]


class _States(Collector):
    def __init__(self, status: Callable[[], list[State]]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        families: dict[str, GaugeMetricFamily | CounterMetricFamily] = {}
        for name, meaning, labels, value in self._status():
            family = families.get(name)
            if family is None:
                kind = CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
                family = families[name] = kind(name, meaning, labels=list(labels))
            family.add_metric(list(labels.values()), value)
        return families.values()

    def describe(self) -> Iterable[Metric]:
        return ()


class _Timed:
    def __init__(
        self, store: object, name: str, operations: Iterable[str], seconds: Histogram
    ) -> None:
        self._store = store
        for operation in operations:
            call = getattr(store, operation)
            setattr(self, operation, _measured(call, seconds.labels(name, operation)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _measured(call: Callable[..., Any], seconds: Histogram) -> Callable[..., Any]:
    def measured(*values: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(*values, **named)
        finally:
            seconds.observe(time.perf_counter() - start)

    return measured


class Watch:
    """The outermost layer: request ids, metrics, the access log, and errors nobody expected."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(scope)
        token = REQUEST_ID.set(request_id)
        start = time.perf_counter()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            await send(message)

        try:
            await self.app(scope, receive, watched)
        except Exception:
            _LOG.exception("an error that nobody expected")
            if status:  # half an answer is out: only breaking off tells that it is broken
                raise
            detail = "the service made an error; its log has it under this X-Request-ID"
            await problems.response(500, detail, "internal")(scope, receive, watched)
        finally:
            self._note(scope, status, time.perf_counter() - start)
            REQUEST_ID.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "(none)")
        method = scope["method"] if scope["method"] in _METHODS else "(other)"
        self.metrics.requests.labels(method, route, str(status)).inc()
        self.metrics.seconds.labels(route).observe(seconds)
        if _ACCESS.isEnabledFor(logging.INFO):
            fields = {
                "method": method,
                "path": scope["path"][:500],
                "status": status,
                "ms": round(seconds * 1000, 2),
                "caller": scope.get("trailwatch.caller", ""),
            }
            _ACCESS.info("request", extra={"fields": fields})


_METHODS: Final = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


def _request_id(scope: Scope) -> str:
    """The id that the caller gave, where it is one, or a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            text = value.decode("latin-1")
            return text if _GIVEN_ID.fullmatch(text) else secrets.token_hex(8)
    return secrets.token_hex(8)


class JsonLines(logging.Formatter):
    """One JSON object a record; tracebacks are a field."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def log_json(level: int = logging.INFO) -> None:
    """Send all log records of the process to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("trailwatch").setLevel(level)
    logging.captureWarnings(True)
