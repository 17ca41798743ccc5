"""How much one caller, and all of them together, may ask for."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import problems
from serving.problems import Problem

_MOST_CALLERS: Final = 10_000


class Buckets:
    """A token bucket a caller: a minute's worth of requests at once, refilled evenly.

    Args:
        per_minute: requests; 0 is no limit.
        clock: seconds, monotonic.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._filled: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, caller: str) -> None:
        """Take a token.

        Raises:
            Problem: 429, the bucket is empty; `Retry-After` says when it holds a token again.
        """
        if not self.per_minute:
            return
        now = self._clock()
        tokens, then = self._filled.pop(caller, (float(self.per_minute), now))
        tokens = min(float(self.per_minute), tokens + (now - then) * self.per_minute / 60)
        enough = tokens >= 1
        self._filled[caller] = (tokens - 1 if enough else tokens, now)
        if len(self._filled) > _MOST_CALLERS:
            self._filled.popitem(last=False)  # who has been silent longest has a full bucket soon
        if not enough:
            wait_s = (1 - tokens) * 60 / self.per_minute
            raise Problem(
                429,
                f"more than {self.per_minute} requests a minute; wait {math.ceil(wait_s)} s",
                "too-many-requests",
                headers={"Retry-After": str(math.ceil(wait_s))},
            )


class Slots:
    """Places for requests that are being scored or wait for it.

    Attributes:
        most: how many there are.
        taken: how many are taken.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Hold a place.

        Raises:
            Problem: 503, all are taken.
        """
        if self.taken >= self.most:
            raise Problem(
                503,
                f"{self.most} requests are being scored already; come again in a second",
                "busy",
                headers={"Retry-After": "1"},
            )
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


class BodyLimit:
    """Refuses bodies that are too large, also those that do not say their length.

    Args:
        app: what comes after.
        most: bytes that a body may have.
        apart: other limits, by how the path starts.
    """

    def __init__(self, app: ASGIApp, most: int, apart: dict[str, int]) -> None:
        self.app = app
        self.most = most
        self.apart = apart

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        most = next((n for start, n in self.apart.items() if path.startswith(start)), self.most)
        if _stated_length(scope) > most:
            refusal = problems.response(*_too_large(most), headers={"Connection": "close"})
            await refusal(scope, receive, send)
            return
        read = 0

        async def counted() -> Message:
            nonlocal read
            message = await receive()
            read += len(message.get("body", b""))
            if read > most:
                raise Problem(*_too_large(most), headers={"Connection": "close"})
            return message

        await self.app(scope, counted, send)


def _stated_length(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _too_large(most: int) -> tuple[int, str, str]:
    return (
        413,
        f"the body has more than {most >> 20} MiB; send it in parts, or a large file to /jobs",
        "too-large",
    )
